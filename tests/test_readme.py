"""The README's example is short; that it runs is seen in tests/end_to_end/test_docs_blocks.py."""

import re
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_library_example_is_as_short_as_it_claims_to_be():
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(example.splitlines()) <= 17
