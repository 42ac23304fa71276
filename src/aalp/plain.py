"""Values as a YAML file holds them, and no objects.

For options whose values may be of any kind. Not `Any`: there the parser builds whatever class or calls whatever function a
mapping with `class_path` names, and a configuration may be a stranger's.
"""

from __future__ import annotations

Scalar = bool | int | float | str | None
_Shallow = Scalar | list[Scalar] | dict[str, Scalar]
_Deeper = Scalar | list[_Shallow] | dict[str, _Shallow]

Plain = Scalar | list[_Deeper] | dict[str, _Deeper]
"""A scalar, or lists and mappings of such, three deep: as deep as options go (`method: {dropout: {probability: 0.5}}`)."""
