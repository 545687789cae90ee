"""Golden values of methods: closed forms, published numbers, brute force."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import gamma, gammainc, ndtri

from gradstats.compressors import Rng, compressor
from gradstats.compressors.max_quantizer import levels
from gradstats.compressors.quantizing import quantized
from gradstats.exchange import simulate
from gradstats.kernels import coding
from gradstats.payloads.codebooks import Uniform

N = 400_000
QUANTILES = (np.arange(N) + 0.5) / N
LAWS = {
    "gaussian": torch.from_numpy(ndtri(QUANTILES)).float(),
    "laplace": torch.from_numpy(stats.laplace.ppf(QUANTILES)).float(),
    "t3": torch.from_numpy(stats.t(3).ppf(QUANTILES)).float(),
}
ORDER = torch.randperm(N, generator=torch.Generator().manual_seed(0))


def grid(law):
    """A quantile grid of a law in random order."""
    return LAWS[law][ORDER]


def decoded(spec, grad, rng=None):
    member = compressor(spec)
    return member.encode(grad, member.init(grad), rng or Rng())[0].decode()


def nmse(spec, grad, rng=None):
    error = decoded(spec, grad, rng).double() - grad.double()
    return float(error.square().sum() / grad.double().square().sum())


@pytest.mark.parametrize("ratio", [0.1, 0.01, 0.001])
@pytest.mark.parametrize("spec", ["topk", "exact-threshold", "redsync-trimmed"])
def test_top_k_on_gaussian_and_laplace(spec, ratio):
    z, log = -ndtri(ratio / 2), math.log(1 / ratio)
    gaussian = 1 - (ratio + 2 * z * math.exp(-z * z / 2) / math.sqrt(2 * math.pi))
    laplace = 1 - ratio * (1 + log + log * log / 2)
    assert nmse(f"{spec}({ratio})", grid("gaussian")) == pytest.approx(gaussian, abs=5e-4)
    assert nmse(f"{spec}({ratio})", grid("laplace")) == pytest.approx(laplace, abs=5e-4)
    notes = {0.1: (0.5607, 0.4046), 0.01: (0.9155, 0.8379), 0.001: (0.9873, 0.9682)}[ratio]
    assert (gaussian, laplace) == pytest.approx(notes, abs=1e-4)


@pytest.mark.parametrize(("ratio", "gaussian"), [(0.1, 0.5745), (0.01, 0.9162), (0.001, 0.9874)])
def test_stc(ratio, gaussian):
    laplace = 1 - ratio * (1 + math.log(1 / ratio)) ** 2 / 2
    assert nmse(f"stc({ratio})", grid("laplace")) == pytest.approx(laplace, abs=5e-4)
    assert nmse(f"stc({ratio})", grid("gaussian")) == pytest.approx(gaussian, abs=5e-4)


def test_signs():
    assert nmse("sign", grid("gaussian")) == pytest.approx(1 - 2 / math.pi, abs=1e-4)
    assert nmse("sign", grid("laplace")) == pytest.approx(0.5, abs=2e-4)
    shifted = grid("gaussian") + 0.3
    assert nmse("sign", shifted) == pytest.approx(0.3626, abs=1e-3)
    assert nmse("onebit", shifted) == pytest.approx(0.3522, abs=1e-3)
    assert nmse("bingrad(bucket=0)", shifted) <= nmse("onebit", shifted)


@pytest.mark.parametrize(("norm", "order"), [("l2", 2), ("max", np.inf)])
@pytest.mark.parametrize("steps", [1, 4, 16, 127])
def test_qsgd(steps, norm, order):
    """The variance of an element is p (1 - p) (N/s)², with p the fraction of s|x|/N."""
    rows = grid("gaussian").double().numpy().reshape(-1, 128)
    norms = np.linalg.norm(rows, order, axis=1, keepdims=True)
    share = np.modf(steps * np.abs(rows) / norms)[0]
    variance = (share * (1 - share) * (norms / steps) ** 2).sum() / (rows**2).sum()
    found = nmse(f"qsgd(bucket=128, norm={norm}, steps={steps})", grid("gaussian"))
    assert found == pytest.approx(variance, rel=0.01)


def test_qsgd_in_the_limits():
    """Few levels: ‖x‖₁/‖x‖ - 1 = √(2B/π) - 1; many: B/6s², fractions being uniform."""
    grad = grid("gaussian")
    few, many = (nmse(f"qsgd(bucket=128, steps={steps})", grad) for steps in (1, 127))
    assert few == pytest.approx(math.sqrt(256 / math.pi) - 1, rel=0.01)
    assert many == pytest.approx(128 / 6 / 127**2, rel=0.01)


def test_qsgd_of_the_whole_tensor_is_nearly_all_zero():
    grad = grid("gaussian")[:200_000]
    share = float((decoded("qsgd(bucket=0, steps=1)", grad) != 0).float().mean())
    assert share == pytest.approx(0.0018, rel=0.1)  # sum |x| / ‖x‖ / d = √(2/(π d))


@pytest.mark.parametrize(
    ("spec", "bits"),
    [
        ("qsgd(bucket=0, steps=1)", 0.021),
        ("qsgd(bucket=0, steps=447)", 2.16),  # s = √d; Elias codes are bounded by 2.8
        ("terngrad", 1.22),
    ],
)
def test_entropy_of_the_codes(spec, bits):
    grad = grid("gaussian")[:200_000]
    payload, _ = compressor(f"{spec} | ans").encode(grad, None, Rng())
    table = 16 * len(payload.levels)  # of frequencies, which travels
    assert (8 * payload.nbytes - table) / len(grad) == pytest.approx(bits, rel=0.03, abs=0.002)


def test_terngrad():
    grad = grid("gaussian")[:200_000]
    largest = float(grad.abs().max())
    expected = largest * float(grad.abs().sum()) / float(grad.square().sum()) - 1
    assert nmse("terngrad(clip=0)", grad) == pytest.approx(expected, rel=0.02)
    assert nmse("terngrad", grad) == pytest.approx(1.01, rel=0.02)
    d = 10_000  # the worst case: one entry 1 and the rest 1/(√d + 1)
    worst = torch.full((d,), 1 / (math.sqrt(d) + 1))
    worst[5] = 1
    draws = [nmse("terngrad(clip=0)", worst, Rng(step=step)) for step in range(200)]
    error = np.std(draws) / math.sqrt(200)
    assert abs(np.mean(draws) - (math.sqrt(d) - 1) / 2) < 4 * error


def test_natural():
    assert nmse("natural", grid("gaussian")) == pytest.approx(0.0818, rel=0.01)
    worst = torch.full((N,), 4 / 3)
    assert nmse("natural", worst) == pytest.approx(1 / 8, rel=0.01)
    powers = 2.0 ** torch.arange(-60, 60)
    assert torch.equal(decoded("natural", powers), powers)


@pytest.mark.parametrize(("law", "omega"), [("gaussian", 62.5), ("laplace", 49.2), ("t3", 40.1)])
@pytest.mark.slow
def test_wangni(law, omega):
    member, grad = compressor("wangni(0.01)"), grid(law)
    found = [member.encode(grad, None, Rng(step=step))[0] for step in range(20)]
    errors = [float((p.decode() - grad).square().sum() / grad.square().sum()) for p in found]
    assert np.mean(errors) == pytest.approx(omega, rel=0.02)
    assert np.mean([p.count for p in found]) == pytest.approx(4000, rel=0.02)


@pytest.mark.slow
def test_wangni_saturates_what_is_large():
    grad = torch.tensor([100.0, 1.0, 1.0, 1.0, 1.0])
    seen = torch.stack([decoded("wangni(0.4)", grad, Rng(step=step)) for step in range(2000)])
    assert (seen[:, 0] == 100).all()
    assert set(seen[:, 1:].unique().tolist()) == {0.0, 4.0}
    assert float((seen[:, 1:] != 0).double().mean()) == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_eden(bits):
    """On Gaussian and on Laplace vectors, with zeros too: the rotation makes them alike."""
    d = [0.36338, 0.11748, 0.034548, 0.009501][bits - 1]
    mostly_zero = torch.where(torch.arange(N) % 10 == 0, grid("laplace"), 0.0)
    for grad in (grid("gaussian"), grid("laplace"), mostly_zero):
        assert nmse(f"eden({bits})", grad) == pytest.approx(d / (1 - d), rel=0.03)
        assert nmse(f"eden({bits}, unbiased=False)", grad) == pytest.approx(d, rel=0.03)


def test_the_mean_of_eden_comes_nearer_and_that_of_its_biased_form_does_not():
    grad, workers = grid("laplace")[:50_000], 16
    for unbiased, factor in ((True, 1 / workers), (False, None)):
        spec = f"eden(1, unbiased={unbiased})"
        seen = torch.stack([decoded(spec, grad, Rng(worker=w)) for w in range(workers)])
        error = float((seen.mean(0) - grad).square().sum() / grad.square().sum())
        if factor:
            assert error == pytest.approx(factor * nmse(spec, grad), rel=0.1)
        else:
            assert error > 0.1


@pytest.mark.parametrize(("bucket", "error"), [(128, 4.2e-5), (512, 5.6e-5), (4096, 7.5e-5)])
def test_int8_over_the_largest_magnitude(bucket, error):
    grad = grid("gaussian")
    payload = quantized(grad, Uniform(127), coding.bucket_norms(grad, bucket, "max"), bucket)
    found = (payload.decode() - grad).square().sum() / grad.square().sum()
    assert float(found) == pytest.approx(error, rel=0.03)


def test_affine_is_within_half_a_step_and_reaches_both_ends():
    grad = grid("laplace")[:4096] + 7
    for bits in (2, 4, 8):
        sent = decoded(f"affine(bits={bits}, bucket=512)", grad)
        rows, sent_rows = grad.view(-1, 512), sent.view(-1, 512)
        step = (rows.amax(1) - rows.amin(1)) / (2**bits - 2)
        assert ((rows - sent_rows).abs() <= 0.5001 * step[:, None] + 1e-6).all()
        torch.testing.assert_close(sent_rows.amax(1), rows.amax(1))


@pytest.mark.parametrize(
    ("spec", "gaussian", "laplace", "t3"),
    [("mxfp4", 0.0133, 0.0160, 0.0207)],
)
def test_block_floats(spec, gaussian, laplace, t3):
    assert nmse(spec, grid("gaussian")) == pytest.approx(gaussian, rel=0.02)
    assert nmse(spec, grid("laplace")) == pytest.approx(laplace, rel=0.02)
    assert nmse(spec, grid("t3")) == pytest.approx(t3, rel=0.05)


def test_mxfp4_by_hand():
    """Largest 5.9: scale 2^(2 - 2) = 1; largest 0.9: scale 2^(-1 - 2)."""
    grad = torch.zeros(64)
    grad[:4] = torch.tensor([5.9, -2.5, 0.25, 0.26])
    grad[32:35] = torch.tensor([0.9, 0.1, -0.03])
    sent = decoded("mxfp4", grad)
    assert sent[:4].tolist() == [6.0, -2.0, 0.0, 0.5]
    assert sent[32:35].tolist() == [0.75, 0.125, 0.0] or sent[32:35].tolist()[:2] == [0.75, 0.125]


LLOYD = [
    # law, scale of unit variance, bits, M, positive levels, error, error under M
    ("gennorm", 2.0, 1, 0, [0.7979], 0.3634, None),
    ("gennorm", 2.0, 2, 0, [0.4528, 1.5104], 0.1175, None),
    ("gennorm", 2.0, 3, 0, [0.2451, 0.7560, 1.3439, 2.1519], 0.0345, None),
    ("gennorm", 2.0, 2, 2, [1.1389, 2.2428], 0.3971, 0.0526),
    ("gennorm", 2.0, 2, 4, [1.6411, 2.7552], 1.0526, 0.0335),
    ("gennorm", 1.0, 1, 0, [0.7071], 0.5, None),
    ("gennorm", 1.0, 2, 0, [0.4198, 1.8340], 0.1762, None),
    ("gennorm", 1.0, 3, 0, [0.2334, 0.8330, 1.6725, 3.0867], 0.0545, None),
    ("gennorm", 1.0, 2, 2, [1.4717, 3.6027], 1.0012, 0.0896),
    ("gennorm", 1.0, 2, 4, [2.6193, 5.2813], 4.1424, 0.0600),
    ("gennorm", 0.5, 1, 0, [0.5477], 0.7000, None),
    ("gennorm", 0.5, 2, 0, [0.3441, 2.6177], 0.2784, None),
    ("gennorm", 0.5, 3, 0, [0.1947, 1.0170, 2.5230, 5.7600], 0.0922, None),
    ("gennorm", 0.5, 2, 2, [2.5896, 9.0657], 4.7965, 0.1583),
    ("dweibull", 1.0, 2, 0, [0.4198, 1.8340], 0.1762, None),
]


def moments_of_gennorm(k, x, shape):
    """∫₀ˣ t^k f of the law of scale 1."""
    a = (k + 1) / shape
    return gamma(a) / gamma(1 / shape) / 2 * gammainc(a, x**shape)


def moments_of_dweibull(k, x, shape):
    a = 1 + k / shape
    return gamma(a) / 2 * gammainc(a, x**shape)


@pytest.mark.parametrize(("law", "shape", "bits", "m", "expected", "error", "weighted"), LLOYD)
def test_lloyd_max(law, shape, bits, m, expected, error, weighted):
    moment, infinity = globals()[f"moments_of_{law}"], np.array(np.inf)
    sd = math.sqrt(2 * moment(2, infinity, shape))
    found = levels(law, shape, bits, float(m))
    np.testing.assert_allclose(found / sd, expected, atol=1.5e-4)
    edges = np.concatenate([[0], (found[1:] + found[:-1]) / 2, [np.inf]])

    def distortion(power):
        parts = [np.diff(moment(power + k, edges, shape)) for k in range(3)]
        total = (found**2 * parts[0] - 2 * found * parts[1] + parts[2]).sum()
        return total / moment(power + 2, infinity, shape)

    assert distortion(0) == pytest.approx(error, abs=2e-4)
    if weighted:
        assert distortion(m) == pytest.approx(weighted, abs=2e-4)


def test_lloyd_max_on_its_law_and_behind_a_sparsifier():
    assert nmse("lloyd-max(bits=2)", grid("gaussian")) == pytest.approx(0.1175, abs=2e-3)
    assert nmse("lloyd-max(bits=3)", grid("laplace")) == pytest.approx(0.0545, abs=2e-3)
    m22 = nmse("topk(0.1) | lloyd-max(bits=2, m=2, law=dweibull)", grid("laplace"))
    assert nmse("topk(0.1)", grid("laplace")) < m22 < 0.47


def test_mstopk_keeps_k_and_all_above_its_threshold():
    payload, _ = compressor("mstopk(0.01)").encode(grid("laplace"), None, Rng())
    assert payload.count == 4000
    assert nmse("mstopk(0.01)", grid("laplace")) == pytest.approx(
        nmse("topk(0.01)", grid("laplace")), rel=1e-3
    )


def test_adacomp_by_hand():
    member = compressor("adacomp(bin=4)")
    grad = torch.tensor([1.0, 0.6, -0.2, 0.1, 0.0, -2.0, 0.9, 0.5])
    payload, state = member.encode(grad, member.init(grad))
    # sent where |2 g| reaches the bin's largest: 1 and 0.6; -2 alone (1.8 < 2)
    assert payload.indices.tolist() == [0, 1, 5]
    torch.testing.assert_close(payload.values, torch.tensor([1.5, 1.5, -1.5]))
    torch.testing.assert_close(state[:2], torch.tensor([-0.5, -0.9]))
    payload, _ = member.encode(torch.zeros(8), state)
    assert payload.indices.tolist() == [1, 6]  # what is left and largest


def test_sbc_sends_one_sign():
    grad = torch.tensor([3.0, 1.0, -2.5, -2.9, 0.1, 0.0])
    payload, _ = compressor("sbc(0.34)").encode(grad, None)
    assert payload.indices.tolist() == [2, 3]
    torch.testing.assert_close(payload.values, torch.tensor([-2.7, -2.7]))


def test_chunks_are_kept_whole():
    grad = torch.zeros(640)
    grad[130], grad[600] = 5.0, 3.0
    payload, _ = compressor("chunk-topk(0.2)").encode(grad, None)
    assert payload.indices.tolist() == [*range(128, 192), *range(576, 640)]


def test_signum_votes():
    member = compressor("signum(beta=0)")
    workers = [torch.tensor([1.0, -1.0, 2.0, -1.0]), torch.tensor([3.0, 1.0, -1.0, -1.0])]
    third = torch.tensor([-1.0, 1.0, 1.0, -9.0])

    def update(grads):
        exchanges = [member.exchange(grad, member.init(grad), Rng()) for grad in grads]
        return simulate(exchanges)[0].update.tolist()

    assert update([*workers, third]) == [1, 1, 1, -1]
    assert update(workers) == [1, 0, 0, -1]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_signum_does_not_hide_what_is_not_finite(value):
    """The sign of NaN is 0 in torch, and that of an infinity ±1."""
    member, whole = compressor("signum"), torch.tensor([1.0, -2.0, 3.0, -4.0])
    broken = torch.tensor([1.0, value, -3.0, -4.0])
    for ways in (member.exchange, member.dense):
        updates = simulate([ways(grad, member.init(grad)) for grad in (whole, broken)])
        assert all(step.update[1].isnan() for step in updates)
        assert all(step.state.isfinite().all() for step in updates)
    assert updates[0].update[[0, 2, 3]].tolist() == [1, 0, -1]
    alone = member.uncompressed(broken, member.init(broken))
    assert alone.isnan().tolist() == [False, True, False, False]
    assert alone[[0, 2, 3]].tolist() == [1, -1, -1]


def test_orq_beats_equidistant_levels_and_a_brute_force_placement():
    grad = grid("laplace")[:2048]
    draws = [nmse("orq(levels=3, bucket=0)", grad, Rng(step=step)) for step in range(50)]
    low, high = float(grad.min()), float(grad.max())
    best = min(
        float(((grad - a) * (b - grad))[(grad >= a) & (grad <= b)].sum()) for a, b in [(low, high)]
    )
    for middle in np.linspace(low, high, 400)[1:-1]:
        below, above = grad[grad <= middle].double(), grad[grad > middle].double()
        variance = ((below - low) * (middle - below)).sum() + (
            (above - middle) * (high - above)
        ).sum()
        best = min(best, float(variance))
    assert np.mean(draws) == pytest.approx(best / float(grad.square().sum()), rel=0.05)


def test_3lc_folds_zeros():
    grad = torch.zeros(5000)
    grad[::1000] = 1.0
    payload, _ = compressor("3lc").encode(grad, None)
    assert torch.equal(payload.decode(), grad)
    assert payload.nbytes < 5 * 2 + 1000 / 14 + 60
    dense = grid("gaussian")
    assert 8 * compressor("3lc").encode(dense, None)[0].nbytes / N < 1.61
    unit = float(dense.abs().max())
    assert (decoded("3lc", dense) - dense).abs().max() <= unit / 2 + 1e-6


def test_lossless_is_exact_and_shorter():
    grad = grid("laplace") * 1e-3
    payload, _ = compressor("lossless").encode(grad, None)
    assert torch.equal(payload.decode(), grad)
    assert payload.nbytes < 0.95 * grad.nbytes


@pytest.mark.parametrize(
    "spec",
    [
        "qsgd(bits=1)",
        "qsgd(norm=l1)",
        "qsgd(bucket=-1)",
        "fp8(e3m4)",
        "eden(9)",
        "co3(fp6)",
        "orq(levels=4)",
        "affine(bits=1)",
        "3lc(sparsity=2.0)",
        "signum(beta=1.0)",
        "nuqsgd(steps=0)",
        "terngrad(clip=-1)",
        "lloyd-max(bits=0)",
        "lloyd-max(law=cauchy)",
        "mstopk(0.1, bisections=0)",
        "adacomp(bin=0)",
        "chunk-topk(0.1, chunk=0)",
        "redsync-trimmed(0.1, eps=1.0)",
        "lossless(level=0)",
        "adaquant(topk(0.1))",
        "adaquant(qsgd(bits=8), most=3)",
        "topk(0.0)",
    ],
)
def test_settings_out_of_range_are_refused(spec):
    with pytest.raises(ValueError, match="must"):
        compressor(spec)


def test_adaquant_takes_more_levels_as_the_loss_falls():
    member, grad = compressor("adaquant(qsgd(bits=3))"), grid("gaussian")[:2000]
    state, seen = member.init(grad), []
    for loss in (4.0, 4.0, 1.0, 0.25, 1e-9, 0.0):
        state = member.observe(state, loss)
        payload, state = member.encode(grad, state, Rng())
        seen.append((len(payload.levels) - 1) // 2)
    assert seen == [3, 3, 6, 12, 127, 127]
    payload, _ = member.encode(grad, member.init(grad), Rng())
    assert len(payload.levels) == 7
