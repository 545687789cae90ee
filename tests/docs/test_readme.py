"""The README's lines for DistributedDataParallel, as they stand, in a script of two processes."""

import re
from pathlib import Path

import pytest

from tests.processes import run_script

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

SCRIPT = """
import os
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

dist.init_process_group("gloo")
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
ddp_model = DistributedDataParallel(model)

{lines}

optimizer = torch.optim.SGD(ddp_model.parameters(), lr=0.5)
rng = torch.Generator().manual_seed(dist.get_rank())
teacher = torch.randn(64, 10, generator=torch.Generator().manual_seed(9))
losses = []
for _ in range(100):
    x = torch.randn(64, 64, generator=rng)
    loss = nn.functional.cross_entropy(ddp_model(x), (x @ teacher).argmax(1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
print(f"{state.traffic.nbytes} {state.khat_over_k}\\n", end="", flush=True)
own = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
other = [torch.empty_like(own) for _ in range(2)]
dist.all_gather(other, own)
assert torch.equal(*other)
os._exit(0)  # gloo's threads may abort a process that ends while a group is in use
"""


@pytest.mark.parametrize("page", ["README.md", "docs/workers.md"])
def test_the_lines_work_as_pasted(page, tmp_path):
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (lines,) = [block for block in blocks if "register_comm_hook" in block]
    lines = lines.replace("ddp_model = DistributedDataParallel(model)\n", "")
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.replace("{lines}", lines))
    ends = run_script([script], tmp_path, workers=2)
    assert [code for code, _, _ in ends] == [0, 0], ends
    told = [out.split() for _, out, _ in ends]
    # 1 % of 9,472 weights, and the 138 biases whole
    assert all(100 * 4 * 138 < int(nbytes) < 100 * 4 * (138 + 200) for nbytes, _ in told)
