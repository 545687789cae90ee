"""A team with a trainer: capture during training, hooks, factorised layers."""

from tests.mistakes.mistake import Mistake

HOOK = "from gradstats.ddp_hooks import CompressorState\n"
STATE = f"{HOOK}state = CompressorState(None, 'ef(topk(0.1))', named_parameters="
LOW = "from gradstats.lowrank import factorize, warm_start\n"
NEW = "--out new.zarr -- python train.py"
MODULE = "model must be a torch.nn.Module, got"
FIRST = "cap = gradstats.capture(model, optimizer, 'new.zarr')\n"

CAPTURES = [
    Mistake(
        "a path that exists",
        "gradstats.capture(model, optimizer, 'run.zarr')",
        "capture --out run.zarr -- python train.py",
        ("run.zarr", "it exists"),
        raises=FileExistsError,
        code=1,
    ),
    Mistake(
        "a second recording into the same path",
        f"{FIRST}gradstats.capture(model, optimizer, 'new.zarr', if_exists='resume')",
        answer=("cannot write new.zarr", "close it"),
        raises=BlockingIOError,
    ),
    Mistake(
        "the optimizer of another model",
        "gradstats.capture(nn.Linear(3, 2), optimizer, 'new.zarr')",
        answer=("cannot record Linear: the optimizer holds none of its 2 parameters", "pass the"),
    ),
    Mistake(
        "frozen parameters only",
        "model.requires_grad_(False)\ngradstats.capture(model, optimizer, 'new.zarr')",
        answer=("cannot record Linear", "none of them requires a gradient"),
    ),
    Mistake(
        "model and optimizer in the wrong order",
        "gradstats.capture(optimizer, model, 'new.zarr')",
        answer=("optimizer must be a torch.optim.Optimizer", "got Linear"),
        raises=TypeError,
    ),
    Mistake(
        "parameters in place of the model",
        "gradstats.capture(model.parameters(), optimizer, 'new.zarr')",
        answer=(f"{MODULE} generator",),
        raises=TypeError,
    ),
    Mistake(
        "a path below a file",
        "gradstats.capture(model, optimizer, 'notes.txt/new.zarr')",
        answer=(
            "cannot write notes.txt/new.zarr: Not a directory",
            "a file stands where a folder must be",
        ),
        raises=OSError,
    ),
    Mistake(
        "steps to record in words",
        "gradstats.capture(model, optimizer, 'new.zarr', full='every 500')",
        answer=("full must be one of every", "got 'every 500'"),
    ),
    Mistake(
        "every 0 steps",
        "gradstats.every(0)",
        f"capture --full-every -3 {NEW}",
        in_python=("interval must be an integer of at least 1, got 0",),
        on_line=("--full-every", "got -3"),
    ),
    Mistake(
        "an interval in words",
        "gradstats.every('500')",
        f"capture --full-every often {NEW}",
        in_python=("interval must be an integer of at least 1, got '500'",),
        on_line=("--full-every", "often"),
    ),
    Mistake(
        "a negative number of tracked elements",
        "gradstats.capture(model, optimizer, 'new.zarr', track=-1)",
        f"capture --track -1 {NEW}",
        ("must be a number of elements or None, got -1",),
        ("track",),
        ("--track",),
    ),
    Mistake(
        "a share of tracked elements",
        "gradstats.capture(model, optimizer, 'new.zarr', track=0.1)",
        f"capture --track 0.1 {NEW}",
        ("0.1",),
        ("track must be a number of elements or None",),
        ("--track",),
    ),
    Mistake(
        "a setting of capture misspelt",
        "gradstats.capture(model, optimizer, 'new.zarr', tracks=10)",
        f"capture --tracks 10 {NEW}",
        ("did you mean",),
        ("'tracks'", "track?"),
        ("--tracks", "--track?"),
        raises=TypeError,
    ),
    Mistake(
        "a pattern that matches no parameter",
        "gradstats.capture(model, optimizer, 'new.zarr', parameters='decoder*')",
        answer=("parameters must match a name of the model, got 'decoder*'", "weight"),
    ),
    Mistake(
        "a word for what to do with a store",
        "gradstats.capture(model, optimizer, 'new.zarr', if_exists='replace')",
        f"capture --if-exists replace {NEW}",
        ("'replace'", "resume", "overwrite"),
        ("if_exists must be one of error",),
        ("--if-exists",),
    ),
]

HOOKS = [
    Mistake(
        "a hook's compressor misspelt",
        f"{HOOK}CompressorState(None, 'topq(0.01)')",
        answer=("compressor must be one of", "got 'topq'", "did you mean topk?"),
    ),
    Mistake(
        "a hook's compressor as a ratio",
        f"{HOOK}CompressorState(None, 0.01)",
        answer=("compressor must be a spec such as topk(0.01), or an instance, got 0.01",),
        raises=TypeError,
    ),
    Mistake(
        "the model as named_parameters",
        f"{STATE}model)",
        answer=("named_parameters must be model.named_parameters()", "got Linear"),
    ),
    Mistake(
        "parameters() as named_parameters",
        f"{STATE}model.parameters())",
        answer=("named_parameters must be model.named_parameters()", "without names"),
    ),
    Mistake(
        "a checkpoint before the process group",
        f"{STATE}model.named_parameters())\nstate.load_state_dict(model.state_dict())",
        answer=("torch.distributed must be initialized before a checkpoint is loaded",),
        raises=RuntimeError,
    ),
]

LOW_RANK = [
    Mistake(
        "a rank ratio of 0",
        f"{LOW}factorize(model, rank_ratio=0)",
        answer=("rank_ratio must lie in (0, 1], got 0",),
    ),
    Mistake(
        "a rank ratio in words",
        f"{LOW}factorize(model, rank_ratio='quarter')",
        answer=("rank_ratio must lie in (0, 1], got 'quarter'",),
    ),
    Mistake(
        "layers in place of a model",
        f"{LOW}factorize([1, 2], rank_ratio=0.25)",
        answer=(f"{MODULE} list",),
        raises=TypeError,
    ),
    Mistake(
        "a layer to keep that the model has not",
        f"{LOW}factorize(model, keep='decoder*')",
        answer=("keep and ranks must name layers of the model, got 'decoder*'",),
    ),
    Mistake(
        "a warm start with another model's optimizer",
        f"{LOW}warm_start(nn.Linear(300, 200), optimizer, rank_ratio=0.25)",
        answer=("optimizer must be of the model's parameters",),
    ),
]

ROWS = [*CAPTURES, *HOOKS, *LOW_RANK]
