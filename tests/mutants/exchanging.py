"""Mutants of exchanges: rounds, means, weights, memories of buckets, replay and its clock."""

from tests.mutants.base import within

EXCHANGE = "tests/exchange/test_driving.py"
HOOKS = "tests/exchange/test_ddp_hooks.py"
REBUILT = f"{HOOKS}::test_nothing_is_lost_when_buckets_are_rebuilt"
CLOCK = "tests/test_clock.py"

fusing = within("compressors/rounds.py", EXCHANGE)
memories = within("exchange/parameter_states.py", REBUILT)
network = within("network.py", "tests/test_network.py", "tests/replaying/test_ranking.py")
folding = within("replaying/folding.py", "tests/replaying/test_folding.py")
compensated = within("compressors/wrappers/memory.py", "tests/replaying/test_folding.py")
COMPENSATED = "tests/replaying/test_compensated_error.py"
measuring = within("replaying/folding.py", COMPENSATED)
memory_base = within("compressors/wrappers/memory.py", COMPENSATED)
timing = within("replaying/timing.py", CLOCK, "tests/replaying/test_folding.py")
workers = within("replaying/folding.py", "tests/replaying/test_workers.py")
switching = within("lowrank/switching.py", "tests/lowrank/test_switching.py")

MUTANTS = (
    fusing("request.tensor.dtype, request.levels)", "request.tensor.dtype)"),
    fusing("request.op, request.tensor.dtype", "request.tensor.dtype"),
    fusing("(request.op, request.tensor.dtype, request", "(request.op, request"),
    memories("        self._split_up(keys)\n", ""),
    timing("encoding += reading + seconds\n", "encoding = reading + seconds\n"),
    timing(
        "return encoding, reading + seconds, answered.state",
        "return encoding, encoding, answered.state",
    ),
    timing("median(encodings[WARM_UP:])", "median(encodings)"),
    timing("median(decodings[WARM_UP:])", "median(decodings)"),
    timing("median(decodings[WARM_UP:])", "median(encodings[WARM_UP:])"),
    timing("median(encodings[WARM_UP:])", "fmean(encodings[WARM_UP:])"),
    timing("median(encodings[WARM_UP:])", "min(encodings[WARM_UP:])"),
    timing("if i > WARM_UP + 1 and", "if i > WARM_UP and"),
    folding("known[-len(known) // 4 :]", "known[-len(known) // 2 :]"),
    folding("max(STEPS_TO_SETTLE, 1 / target_ratio)", "STEPS_TO_SETTLE"),
    folding("abs(trend) * len(last)", "trend * len(last)"),
    compensated("memory.before(grad, state)[0]", "grad"),
    measuring("update, held, waiting)", "update, held)"),
    memory_base(
        "self.received(self.before(grad.detach(), state)[0], state)",
        "self.before(grad.detach(), state)[0]",
    ),
    workers("_with_owned(compressor, mean, states)\n", "mean\n"),
    workers("held = _with_owned(compressor, _mean(residuals), after)", "held = _mean(residuals)"),
    workers("double().mean(0)", "double().sum(0)"),
    workers("nmse * _agreement(mean, grads)", "nmse"),
    workers("fp16=n > 1", "fp16=n > 9"),
    switching("np.abs(slopes[-LATEST:]).mean()", "np.abs(slopes[-LATEST:].mean())"),
    switching("2 / (SPAN + 1)", "1 / (SPAN + 1)"),
    network("nbytes / self.workers / self.bandwidth", "nbytes / self.bandwidth"),
    network("(self.workers - 1) * (rounds", "self.workers * (rounds"),
    network("(self.workers - 1) * (rounds * self.latency", "(self.workers - 1) * (self.latency"),
    network("2 * hops * (rounds * self.latency", "2 * hops * (self.latency"),
    network("2 * hops * (rounds", "hops * (rounds"),
    network("(2 * self.latency + chunks", "(self.latency + chunks"),
    network("chunks = nbytes / self.workers", "chunks = nbytes"),
)
