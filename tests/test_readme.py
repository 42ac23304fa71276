"""The README's example runs as it stands."""

import re
from pathlib import Path

import torch

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_library_example_runs(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    torch.manual_seed(0)
    zeros = torch.zeros(4, dtype=torch.int64)
    # A network that has only seen class 0 says 0: the test image of class 9 is wrong already, and AutoAttack has no work.
    names = {
        "loader": [(torch.rand(4, 3, 32, 32), zeros) for _ in range(3)],
        "test_images": torch.rand(1, 3, 32, 32),
        "test_labels": torch.tensor([9]),
    }
    exec(example, names)
    assert capsys.readouterr().out == "0.0\n"


def test_the_library_example_is_as_short_as_it_claims_to_be():
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(example.splitlines()) <= 17
