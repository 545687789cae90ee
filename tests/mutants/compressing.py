"""Mutants of compressors: bounds, feedback, memories, factors, levels."""

from tests.mutants.base import within

LAWS = "tests/compressors/test_laws.py"
OBEYS = f"{LAWS}::test_every_member_obeys_the_laws"


def obeys(member):
    """The tests of the bounds of one member."""
    return [f"{OBEYS}[{member}-{law}]" for law in ("expectation", "variance")]


HALF = f"{LAWS}::test_half_of_the_error_that_is_declared_is_detected"
KEPT = f"{LAWS}::test_settings_with_bounds_of_their_own_keep_them"
MEMORIES = "tests/compressors/test_memories.py"
LOW_RANK = "tests/compressors/test_low_rank.py"
SHARED = "tests/compressors/test_shared_scale.py"

terngrad = within("compressors/methods/terngrad.py", f"{KEPT}[terngrad(clip=0)]")
natural = within("compressors/methods/natural.py", *obeys("natural"), f"{KEPT}[nuqsgd(steps=6)]")
SETTINGS = [f"{KEPT}[qsgd({each})]" for each in ("bits=2", "bits=8", "bits=2, norm=max")]
qsgd = within(
    "compressors/methods/qsgd.py",
    f"{KEPT}[qsgd(norm=max)]",
    *SETTINGS,
    *obeys("qsgd"),
)
randomk = within("compressors/methods/randomk.py", f"{KEPT}[randomk(0.01, scaled=True)]")
count_sketch = within(
    "compressors/methods/count_sketch.py", f"{KEPT}[count-sketch(estimate=mean)]"
)
sketch = within("payloads/sketch.py", f"{KEPT}[count-sketch(estimate=mean)]")
laws = within("testing/contract_laws.py", HALF)
gradients = within("testing/gradients.py", HALF)
TESTING = "tests/testing/test_family_laws.py"
ef = within("compressors/wrappers/error_feedback.py", MEMORIES)
ranges = within("kernels/ranges.py", MEMORIES)
COUNTING, CODING = "tests/kernels/test_counting.py", "tests/kernels/test_coding.py"
summing = within(
    "kernels/summing_cpu.py", f"{COUNTING}::test_deviations_against_extended_precision"
)
packer = within(
    "kernels/coding_cpu_packer.py", f"{CODING}::test_a_number_with_one_more_digit_is_refused"
)
indices = within("payloads/index_coders.py", "tests/payloads/test_index_codes.py")
sparse = within("payloads/sparse.py", "tests/payloads/test_sparse_host_reads.py")
powersgd = within("compressors/methods/powersgd.py", LOW_RANK)
low_rank = within("compressors/matrices.py", LOW_RANK)
ef21 = within("compressors/wrappers/ef21.py", MEMORIES)
velocity = within("compressors/wrappers/velocity.py", MEMORIES)
low_pass = within("compressors/wrappers/low_pass.py", SHARED)
TWO_SHOT = "tests/compressors/test_two_shot.py"
OWNED = "tests/compressors/test_owned_residuals.py"
two_shot = within("compressors/wrappers/two_shot.py", TWO_SHOT, OWNED)
ring = within("compressors/wrappers/ring.py", TWO_SHOT)
chunks = within("compressors/wrappers/chunks.py", TWO_SHOT)

MUTANTS = (
    # bounds
    terngrad("(math.sqrt(payload.bucket) - 1) / 2", "(math.sqrt(payload.bucket) - 1) / 4"),
    summing("squares.sum() + counts @ apart**2", "squares.sum() + apart @ apart"),
    summing("math.sqrt(total / (n - 1))", "math.sqrt(total / n)"),
    packer("last >= how.levels**rest", "last > how.levels**rest"),
    packer("how.levels**digits - 1", "how.levels**digits - 2"),
    natural('Bound("1/8", lambda payload: 1 / 8)', 'Bound("1/8", lambda payload: 1 / 16)'),
    natural("size * least**2 / 4, math", "size * least**2 / 16, math", *obeys("nuqsgd")),
    qsgd("min(bucket / (4 * self.s**2), few", "min(bucket / (8 * self.s**2), few"),
    qsgd('(root + 1) / 2 if self.norm == "max"', '(root + 1) / 4 if self.norm == "max"'),
    qsgd("else root\n", "else root / 2\n"),
    randomk("/ max(payload.count, 1) - 1", "/ max(payload.count, 1) / 2 - 1"),
    randomk("/ max(payload.count, 1) - 1", "/ max(payload.count, 1) - 2"),
    count_sketch(
        "payload.numel / payload.table.numel()", "payload.numel / payload.table.numel() / 2"
    ),
    sketch("else rows.mean(0)", "else 0.97 * rows.mean(0)", SHARED),
    sketch("1 - 2 * (sign & 1)", "1 - (sign & 1)"),
    # what the law suite looks at
    gradients('{"constant": 0.7, "4/3": 4 / 3,', '{"constant": 1.0, "4/3": 1.0,', TESTING),
    gradients("1 / (math.sqrt(every) + 1)", "1.0"),
    gradients("_peaks(32, 1.0, 1 / 16)", "_peaks(32, 1.0, 1 / 2)"),
    gradients("_peaks(EXTREMAL, 1.75, 17 / 16)", "_peaks(EXTREMAL, 1.75, 1.0)"),
    gradients("_peaks(16, 6.0, 5.0)", "_peaks(16, 6.0, 4.0)"),
    gradients("2 - 2.0**-6}", "2.0}"),
    laws("STANDARD_ERRORS = 5", "STANDARD_ERRORS = 500"),
    # error feedback
    ef("state.residual.mul_(self.gamma)", "pass"),
    ef(
        "return state.residual if self.gamma == 1 else state.residual * self.gamma",
        "return state.residual",
    ),
    ef("        sent.remove_from(corrected.view(-1))\n", ""),
    ranges(
        "torch.where(sent.isfinite(), waiting - sent, 0)", "(waiting - sent).nan_to_num(0, 0, 0)"
    ),
    ranges("torch.where(sent.isfinite(), waiting - sent, 0)", "(waiting - sent)"),
    ef21("known = update.isfinite()", "known = update.isfinite() | True"),
    ef21("Tensor = state.mean + update", "Tensor = state.own + update"),
    ef21("torch.where(news.isfinite(), news, 0)", "news"),
    velocity("u = summed(u, g).mul_(self.momentum)", "u = summed(u * self.momentum, g)"),
    velocity("torch.where(factor < 1, factor, 1.0)", "factor"),
    velocity("        if self.masking:\n", "        if not self.masking:\n"),
    low_pass("alpha=1 - self.beta", "alpha=self.beta"),
    # indices
    indices("    first &= ~(-2 << (63 - before))  # copies of the sign\n", ""),
    indices("values >> 1 >> (63 - before)", "values >> (63 - before)"),
    indices("    unary[-1:].bitwise_and_((2 << (ends[-1:] & 7)) - 1)\n", ""),
    indices("(lengths > limb + 1).to", "(lengths > limb).to"),
    indices("torch.where(places <= ends, bits, 0)", "bits"),
    indices("max(1, -(-width_of(n) // 7))", "max(1, width_of(n) // 7)"),
    sparse("    @cached_property\n    def _written", "    @property\n    def _written"),
    # exchanges in two shots
    two_shot("            mean = mean + owned.view(-1)[own]\n", "            pass\n"),
    two_shot("times(owned, workers)", "times(owned, 1)"),
    two_shot("    added[own] = 0\n", "    added[own] += 0\n"),
    two_shot("torch.where(update.isfinite(), kept, had)", "kept"),
    two_shot("kept = torch.zeros_like(owned).view(-1)", "kept = owned.clone().view(-1)"),
    two_shot("return super().decode() - self.added", "return super().decode()"),
    two_shot("worker=rng.workers + own", "parameter='sum'"),
    two_shot(" and not self._second.contract.unbiased", ""),
    two_shot("torch.zeros_like(state.owned))", "state.owned)"),
    two_shot(
        "saturated(mean, grad.dtype), second, rng", "mean.half().to(grad.dtype), second, rng"
    ),
    two_shot("payload.add_to(mean, 1 / len(payloads))", "payload.add_to(mean)"),
    ring("payload.decode(), alpha=workers", "payload.decode()"),
    ring("(rank - 2 - hop) % n", "(rank - 1 - hop) % n"),
    ring("Dense(sent) if n > 1 else payload", "payload"),
    chunks("torch.float32 if dtype.itemsize == 2 else dtype", "dtype"),
    # factors
    powersgd("each.right if each.is_finite else state", "each.right"),
    powersgd("orthonormal(block) for block in mean.blocks", "block for block in mean.blocks"),
    low_rank("rank * sum(matrix.shape) >= matrix", "2 * rank * sum(matrix.shape) >= matrix"),
    low_rank("rank * sum(matrix.shape) >= matrix", "rank * sum(matrix.shape) > matrix"),
    low_rank(
        "if grad.dim() < 2 or",
        "if grad.dim() < 1 or",
        survives="a vector is a matrix of one column, which no two factors shorten",
    ),
)
