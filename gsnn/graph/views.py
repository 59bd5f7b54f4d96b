"""What a graph hands out of itself: names and dictionaries that refuse to change, and copies that do not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import torch


class FrozenList(list[str]):
    """A list of names that refuses to change. Equal to, and usable as, the plain list of the same names."""

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError("the node names of a HeteroGraph cannot be changed; take a copy with list(names)")

    append = clear = extend = insert = pop = remove = reverse = sort = _refuse
    __setitem__ = __delitem__ = __iadd__ = __imul__ = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)  # a copy is the copier's own, and may be changed


class DictView(Mapping[Any, Any]):
    """Read-only mapping; copies and pickles of it are plain dictionaries of their own."""

    def __init__(self, name: str, values: dict[Any, Any]):
        self._name, self._values = name, values

    def __getitem__(self, key: Any) -> Any:
        value = self._values[key]
        # Copies, because torch has no read-only tensors.
        return value.clone() if torch.is_tensor(value) else value

    def __iter__(self) -> Iterator[Any]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return repr(self._values)

    def _refuse(self, *args: Any) -> NoReturn:
        raise TypeError(
            f"{self._name} of a HeteroGraph cannot be changed; edit copy.deepcopy(graph.{self._name}) and "
            "build a graph from it, or use graph.with_edges and graph.without_edges"
        )

    __setitem__ = __delitem__ = _refuse

    def copy(self) -> dict[Any, Any]:
        """A plain dictionary that can be edited."""
        return {key: list(v) if isinstance(v, list) else v.clone() for key, v in self._values.items()}

    def __copy__(self) -> dict[Any, Any]:
        return self.copy()

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[Any, Any]:
        return self.copy()

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (self.copy(),)
