"""The names that users write: each is there, whatever files the code lies in."""

import subprocess
import sys

import pytest

import gradstats

NAMES = {
    "gradstats": """GradientStore StoreFormatError Summary at_steps best_distribution capture
        close_all compare_distributions compressor equal_bits every factorised_rows fit
        load_example log_spaced methods open ranks replay report series sidco_threshold
        sidco_thresholds structure summarize summarize_counts summarize_histogram
        summarize_segments threshold_reuse timings window""",
    "gradstats.compressors": """AllGather AllReduce Bound Broadcast COMPRESSORS Collective
        Compressor Contract ErrorFeedback ExactThreshold MEMORIES MIN_NUMEL Memory POLICIES Part
        Payload PayloadError PerParameter Pipe REFERENCE Rng STAGES SUPPORTED Stage Step
        compressor compressors from_bytes""",
    "gradstats.ddp_hooks": "CompressorState compress_hook",
    "gradstats.exchange": "DisagreementError drive fused simulate",
    "gradstats.families": """DGamma DGenPareto DWeibull FAMILIES Family FitError GenNorm Laplace
        LogNorm Normal T family""",
    "gradstats.integrations": (
        "CompressionCallback LightningCallback LightningCompression TransformersCallback"
        " TransformersCompression compress"
    ),
    "gradstats.kernels": "FORMS Tally compact count count_segments largest use",
    "gradstats.lowrank": """Change Factorization LowRankAttention LowRankConv1d LowRankConv2d
        LowRankGRU LowRankLSTM LowRankLinear RankTracker VanillaWarmUp balanced factorize
        stable_rank warm_start""",
    "gradstats.metrics": "closeness cosine relative_error",
    "gradstats.network": "Network",
    "gradstats.plot": """best_k density equal_bits error_against_bytes estimation evolution heat
        over_steps overhead qq ranks residuals reusable sorted_magnitudes survival tail_error
        thresholds winners""",
    "gradstats.recording": """Capture Schedule Stats at_steps capture close_all every log_spaced
        window""",
    "gradstats.runs": "Run open",
    "gradstats.store": "FORMAT_VERSION GradientStore Parameter Row StoreFormatError Stream",
    "gradstats.summary": "Moments Summary summarize summarize_segments",
    "gradstats.testing": "check_compressor check_family compressor_checks family_checks",
    "gradstats.thresholds": "Threshold sidco_threshold",
}
# importable by name, and there after `import gradstats` alone
DOORS = sorted(module.removeprefix("gradstats.") for module in NAMES if "." in module)


@pytest.mark.parametrize("module", NAMES)
def test_every_name_that_users_write_is_there(module):
    home = __import__(module, fromlist=["_"])
    assert [name for name in NAMES[module].split() if not hasattr(home, name)] == []


def test_the_list_of_the_package_is_the_one_above():
    assert set(gradstats.__all__) == set(NAMES["gradstats"].split())


def test_tables_over_steps_are_a_name_too():
    assert callable(gradstats.over_steps.rank_table)
    assert callable(gradstats.over_steps.over_steps)


@pytest.mark.slow
@pytest.mark.parametrize("door", [*DOORS, "over_steps"])
def test_a_door_opens_after_importing_gradstats_alone(door):
    code = f"import gradstats; print(gradstats.{door}.__name__)"
    name = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert name.stdout.strip().startswith("gradstats.")
