"""torch's compiler is left out until something is compiled, and works then."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
PROGRAM = """
import sys
import torch

if sys.argv[1] == "postponed":
    from experiments.runtime.compiler import postpone_compiler
    postpone_compiler()
import timm.optim

def descend(name):
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(30))
    optimizer = getattr(torch.optim, name)([weight], lr=0.1, weight_decay=0.01)
    for _ in range(3):
        torch.cos(weight).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        optimizer.load_state_dict(optimizer.state_dict())
    assert weight.requires_grad and torch.is_grad_enabled()
    return weight.tolist()

print([descend(name) for name in ("SGD", "Adam", "AdamW", "RMSprop", "NAdam")])
print("torch._dynamo" in sys.modules, file=sys.stderr)

compiled = torch.compile(lambda x: x + 1, backend="eager", fullgraph=True)
print(compiled(torch.ones(2)).tolist(), torch._dynamo.config.recompile_limit)
from torchvision.ops import roi_align
print(roi_align(torch.ones(1, 1, 4, 4), [torch.tensor([[0.0, 0, 3, 3]])], 2).tolist())
"""


def run(way: str) -> tuple[str, str]:
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, way]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_optimizers_and_the_compiler_do_the_same_when_it_is_postponed() -> None:
    results, imported = run("at once")
    postponed_results, postponed_imported = run("postponed")
    assert postponed_results == results
    assert (imported, postponed_imported) == ("True\n", "False\n")
