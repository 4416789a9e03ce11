"""Reads the tables of a policy file key by key, with errors that say where."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class PolicyError(OSError):
    """The policy file cannot be read or does not make sense; one line with place and remedy."""


class Reader:
    """Takes the keys of one table out of it; `number` 0: there is only one of its kind."""

    def __init__(self, path: str, number: int, table: Mapping[str, object], kind: str = "rule") -> None:
        self._where = f"{path}: {kind} {number}" if number else f"{path}: {kind}"
        self._kind = kind
        self._table = dict(table)

    def fail(self, key: str, problem: str) -> PolicyError:
        return PolicyError(f"{self._where}, {key}: {problem}")

    def has(self, key: str) -> bool:
        """Whether the key is given."""
        return key in self._table

    def keys(self) -> tuple[str, ...]:
        """The keys that have not been taken yet."""
        return tuple(self._table)

    def table(self, key: str) -> Reader | None:
        """A table within this one."""
        value = self._table.pop(key, None)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.fail(key, f"must be a table, not {value!r}; write {key} = {{ name = 1 }}")
        return Reader(self._where, 0, value, key)

    def text(self, key: str, choices: tuple[str, ...] = ()) -> str | None:
        value = self._table.pop(key, None)
        if value is None:
            return None
        if not isinstance(value, str) or not value:
            raise self.fail(key, f'must be a text, not {value!r}; write {key} = "..."')
        if choices and value not in choices:
            raise self.fail(key, f"{value!r} is none of {', '.join(choices)}")
        return value

    def user(self, key: str) -> str | None:
        value = self._table.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            self._table.pop(key)
            return str(value)
        return self.text(key)

    def number(self, key: str, low: int, high: int, unit: str) -> int | None:
        value = self._table.pop(key, None)
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.fail(key, f"must be a whole number of {unit} from {low} to {high}, not {value!r}")
        return value

    def names(self, key: str, numbers: bool = False) -> tuple[str, ...]:
        value = self._table.pop(key, None)
        if value is None:
            return ()
        if not isinstance(value, list):
            raise self.fail(key, f'must be a list, not {value!r}; write {key} = ["..."]')
        found: list[str] = []
        for item in value:
            if numbers and isinstance(item, int) and not isinstance(item, bool) and item >= 0:
                item = str(item)
            if not isinstance(item, str) or not item:
                raise self.fail(key, f"must be a list of texts; {item!r} is none")
            if item in found:
                raise self.fail(key, f"{item!r} is given twice; remove one")
            found.append(item)
        return tuple(found)

    def address(self, key: str) -> Network | None:
        value = self.text(key)
        if value is None:
            return None
        try:
            return ipaddress.ip_network(value, strict=False)
        except ValueError:
            raise self.fail(key, f'{value!r} is no address; write "10.0.0.0/8" or "::1"') from None

    def ports(self, key: str) -> tuple[int, int] | None:
        value = self._table.pop(key, None)
        if value is None:
            return None
        low: object = value
        high: object = value
        if isinstance(value, str):
            match = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", value)
            if match:
                low, high = int(match[1]), int(match[2] or match[1])
        if not isinstance(low, int) or not isinstance(high, int) or isinstance(value, bool):
            raise self.fail(key, f'must be a port or a range, not {value!r}; write 6379 or "6379-6400"')
        if not 1 <= low <= high <= 65535:
            raise self.fail(key, f"{value!r} is not within 1 to 65535 in rising order")
        return low, high

    def done(self, known: tuple[str, ...]) -> None:
        for key in self._table:
            raise self.fail(key, f"unknown key; a {self._kind} has {', '.join(known)}")
