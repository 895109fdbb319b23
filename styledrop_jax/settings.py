"""Settings as values: frozen dataclasses whose fields carry their own help, range and default.

A field made by `setting` holds one value, by `section` another such dataclass, by `numbered` a
tuple of them under the keys `round_1`, `round_2`, …, by `variant` one of several, and by `weights`
a number for each name of a registry. `parse` turns nested plain data into such a value once, and
says everything that is wrong with it in one error.
"""

import dataclasses
import math
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, TypeVar, cast, get_type_hints

from styledrop_jax.errors import UserError, check_words, did_you_mean, few, shown

T = TypeVar("T")
_KEY = "setting"
_HIGHEST = 1_000_000  # of a whole number that has no bound of its own
_MOST_NUMBERED = 1000
_ROOM = 250  # letters of the problems that one error names
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """What one value must be.

    Attributes:
        help: a line for `--help`.
        low, high: the range of a number; `low` itself is outside it when `above`.
        choices: what a text or a whole number must be one of, if there are any; read when a value
            is checked.
        empty: whether a text may be empty.
        path: "file" if the text names files of the user's, "model" if it may name a model instead,
            "loras" if it names files with weights.
        basic: whether most runs set it.
    """

    help: str
    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    choices: Collection[Any] = ()
    empty: bool = True
    path: str = ""
    basic: bool = False

    def expected(self, kind: type) -> str:
        """In words, what a value of `kind` must be."""
        if self.choices:
            return "one of " + ", ".join(map(str, self.choices))
        words = _KINDS[kind]
        if self.low > -math.inf:
            words += f" {'above' if self.above else 'of at least'} {self.low:.12g}"
        if self.high < math.inf:
            words += f"{' and' if self.low > -math.inf else ''} at most {self.high:.12g}"
        return words if self.empty else words + " that is not empty"

    def accepts(self, value: Any, kind: type) -> bool:
        """Whether `value` is of `kind` and in range; a whole number is a number too."""
        if kind is bool or isinstance(value, bool):
            return kind is bool and isinstance(value, bool)
        if kind is str and isinstance(value, str):
            return self._offers(value) and (self.empty or bool(value.strip()))
        if kind is str or not isinstance(value, int if kind is int else int | float):
            return False
        inside = self.low <= value <= self.high and not (self.above and value == self.low)
        return inside and abs(value) <= sys.float_info.max and self._offers(value)

    def _offers(self, value: str | float) -> bool:
        return not self.choices or value in self.choices


@dataclasses.dataclass(frozen=True)
class _Section:
    kind: type


@dataclasses.dataclass(frozen=True)
class _Numbered:
    kind: type
    prefix: str


@dataclasses.dataclass(frozen=True)
class _Variant:
    kinds: Mapping[str, Any]
    key: str
    default: str
    help: str


@dataclasses.dataclass(frozen=True)
class _Weights:
    names: Collection[str]
    help: str


def setting(default: Any, help: str, **rule: Any) -> Any:
    """A field of one value; `rule` is the rest of a `Rule`.

    A whole number has a highest value: a million, if the rule says no other.
    """
    if type(default) is int:
        rule.setdefault("high", _HIGHEST)
    return dataclasses.field(default=default, metadata={_KEY: Rule(help=help, **rule)})


def section(kind: type[T], **defaults: Any) -> T:
    """A field that holds another dataclass of settings, `defaults` in place of that one's own."""
    return dataclasses.field(
        default_factory=lambda: kind(**defaults), metadata={_KEY: _Section(kind)}
    )


def numbered(kind: type[T], prefix: str, default: Callable[[], tuple[T, ...]]) -> tuple[T, ...]:
    """A field that holds a tuple of them: `prefix`1, `prefix`2, … without gaps, at least one."""
    return dataclasses.field(default_factory=default, metadata={_KEY: _Numbered(kind, prefix)})


def variant(kinds: Mapping[str, Any], default: str, help: str, key: str = "kind") -> Any:
    """A field that holds the `settings` dataclass of one of `kinds`, which `key` names.

    The fields of the others may stand beside it, so that a change of the name alone is a whole
    change.
    """
    return dataclasses.field(
        default_factory=lambda: kinds[default].settings(),
        metadata={_KEY: _Variant(kinds, key, default, help)},
    )


def weights(names: Collection[str], default: Mapping[str, float], help: str) -> Any:
    """A field that holds {name: number}; a name that is left out weighs 0, and not all may."""
    return dataclasses.field(
        default_factory=lambda: dict(default), metadata={_KEY: _Weights(names, help)}
    )


def parse(kind: type[T], data: Mapping[str, Any], where: str = "config") -> T:
    """The value of `kind` that `data`, nested plain data, describes; a field that is left out has
    its default.

    Raises:
        UserError: unknown fields, and values of a wrong type or out of range: one line with all of
            them.
    """
    problems: list[str] = []
    value = _read(kind, data, where, problems)
    if problems:
        raise UserError(few(problems, room=_ROOM, joint=" | "))
    return value


def complete(kind: type, data: Mapping[str, Any]) -> dict[str, Any]:
    """`data` with the default of every field that it leaves out; what `kind` does not know stays as
    it is.
    """
    whole = dict(data)
    for field, rule, _ in _fields(kind):
        if isinstance(rule, _Numbered):
            for key in _numbers(data, rule.prefix) or [f"{rule.prefix}1"]:
                whole[key] = _completed(rule.kind, data.get(key, {}))
        elif isinstance(rule, _Section):
            defaults = to_dict(_default(field))
            whole[field.name] = _completed(rule.kind, data.get(field.name, {}), defaults)
        elif isinstance(rule, _Variant):
            given = data.get(field.name, {})
            name = (_mapping(given) or {}).get(rule.key, rule.default)
            whole[field.name] = _completed_variant(rule, name, given)
        else:
            whole.setdefault(field.name, _plain(_default(field)))
    return whole


def to_dict(value: Any) -> dict[str, Any]:
    """The plain data that `parse` reads a value from."""
    plain: dict[str, Any] = {}
    for field, rule, _ in _fields(_kind(value)):
        found = getattr(value, field.name)
        if isinstance(rule, _Numbered):
            for number, part in enumerate(found, 1):
                plain[f"{rule.prefix}{number}"] = to_dict(part)
        elif isinstance(rule, _Variant):
            name = next(name for name, kind in rule.kinds.items() if kind.settings is type(found))
            plain[field.name] = {rule.key: name, **to_dict(found)}
        elif isinstance(rule, _Section):
            plain[field.name] = to_dict(found)
        else:
            plain[field.name] = _plain(found)
    return plain


def sections(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every section in `value`, those inside others too."""
    for field, rule, _ in _fields(_kind(value)):
        found = getattr(value, field.name)
        if isinstance(rule, _Section):
            yield f"{where}{field.name}", found
            yield from sections(found, f"{where}{field.name}.")
        elif isinstance(rule, _Numbered):
            for number, part in enumerate(found, 1):
                yield f"{where}{rule.prefix}{number}", part
                yield from sections(part, f"{where}{rule.prefix}{number}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Described:
    """One field of a config: its dotted name, its value there, its help, and in words what it may
    be.
    """

    name: str
    value: Any
    help: str
    expected: str
    path: str = ""
    basic: bool = False


def describe(kind: type, data: Any, where: str = "") -> Iterator[Described]:
    """Every field of `data`, which `complete` made, in the order of the fields of `kind`.

    A section that is none, which `parse` complains of, has no fields.
    """
    values = _mapping(data)
    if values is None:
        return
    for field, rule, hint in _fields(kind):
        name = f"{where}{field.name}"
        if isinstance(rule, _Numbered):
            for key in _numbers(values, rule.prefix):
                yield from describe(rule.kind, values[key], f"{where}{key}.")
        elif isinstance(rule, _Section):
            yield from describe(rule.kind, values[field.name], f"{name}.")
        elif isinstance(rule, _Variant):
            yield from _describe_variant(rule, _mapping(values[field.name]) or {}, name)
        elif isinstance(rule, _Weights):
            words = f"one of {', '.join(rule.names)}"
            for key, weight in (_mapping(values[field.name]) or {}).items():
                yield Described(name=f"{name}.{key}", value=weight, help=rule.help, expected=words)
        else:
            yield _described(name, values[field.name], rule, hint)


def _described(name: str, value: Any, rule: Rule, kind: type) -> Described:
    return Described(
        name=name,
        value=value,
        help=rule.help,
        expected=rule.expected(kind),
        path=rule.path,
        basic=rule.basic,
    )


def _describe_variant(rule: _Variant, data: Mapping[str, Any], name: str) -> Iterator[Described]:
    words = f"one of {', '.join(rule.kinds)}"
    chosen = data.get(rule.key, "")
    yield Described(name=f"{name}.{rule.key}", value=chosen, help=rule.help, expected=words)
    for key, (inner, hint, owners) in _variant_rules(rule, chosen).items():
        if key in data:
            line = _described(f"{name}.{key}", data[key], inner, hint)
            yield dataclasses.replace(line, help=f"{line.help} ({', '.join(owners)})")


def _fields(kind: type) -> Iterator[tuple[dataclasses.Field[Any], Any, Any]]:
    """(field, what it is made by, its type) of every field of a dataclass of settings."""
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        yield field, field.metadata[_KEY], hints[field.name]


def _kind(value: object) -> type:
    return type(value)


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _mapping(value: Any) -> Mapping[str, Any] | None:
    """`value` if it is a section, else None."""
    return cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else None


def _plain(value: Any) -> Any:
    section = _mapping(value)
    return value if section is None else dict(section)


def _completed(kind: type, given: Any, defaults: Mapping[str, Any] | None = None) -> Any:
    """A section with its defaults; what is no section stays, to be complained of by `parse`."""
    section = _mapping(given)
    if section is None:
        return given
    merged = dict(section)
    for name, value in (defaults or {}).items():
        if name not in merged:
            merged[name] = value
    return complete(kind, merged)


def _completed_variant(rule: _Variant, name: str, given: Any) -> Any:
    section = _mapping(given)
    if section is None:
        return given
    merged = {rule.key: name, **section}
    for key, default in _variant_defaults(rule, name).items():
        merged.setdefault(key, default)
    return merged


def _chosen_first(rule: _Variant, name: str) -> list[str]:
    """The names of the kinds, the chosen one before the others: where two have a field, its own
    holds.
    """
    return sorted(rule.kinds, key=lambda other: other != name)


def _variant_defaults(rule: _Variant, name: str) -> dict[str, Any]:
    defaults: dict[str, Any] = {}
    for other in _chosen_first(rule, name):
        for key, value in to_dict(rule.kinds[other].settings()).items():
            defaults.setdefault(key, value)
    return defaults


def _variant_rules(rule: _Variant, name: str) -> dict[str, tuple[Rule, Any, list[str]]]:
    """{field: (its rule, its type, the names of the kinds that have it)}"""
    rules: dict[str, tuple[Rule, Any, list[str]]] = {}
    for other in _chosen_first(rule, name):
        for field, inner, hint in _fields(rule.kinds[other].settings):
            rules.setdefault(field.name, (inner, hint, []))[2].append(other)
    return rules


def _numbers(data: Mapping[str, Any], prefix: str) -> list[str]:
    """The keys `prefix`N of `data`, by N."""
    found = [key for key in data if re.fullmatch(re.escape(prefix) + r"[1-9]\d*", str(key))]
    return sorted(found, key=lambda key: int(key.removeprefix(prefix)))


def _read(kind: Any, data: Any, where: str, problems: list[str]) -> Any:
    """The value, or a default in place of what is wrong, which `problems` then has."""
    names = _names(kind)
    given_data = _mapping(data)
    if given_data is None:
        expected = few(names, room=80, joint=", ")
        problems.append(f"{where}: found {shown(data)}, expected the fields {expected}")
        return kind()
    values: dict[str, Any] = {}
    known: set[Any] = set()
    for field, rule, hint in _fields(kind):
        name = f"{where}.{field.name}"
        if isinstance(rule, _Numbered):
            keys = _numbers(given_data, rule.prefix)
            known.update(keys)
            if keys:
                values[field.name] = _read_numbered(rule, given_data, keys, where, problems)
            continue
        known.add(field.name)
        if field.name not in given_data:
            continue
        given = given_data[field.name]
        if isinstance(rule, _Section):
            inner = _mapping(given)
            whole = given if inner is None else {**to_dict(_default(field)), **inner}
            values[field.name] = _read(rule.kind, whole, name, problems)
        elif isinstance(rule, _Variant):
            values[field.name] = _read_variant(rule, given, name, problems)
        elif isinstance(rule, _Weights):
            values[field.name] = _read_weights(rule, given, name, problems)
        elif _check(given, rule, hint, name, problems):
            values[field.name] = float(given) if hint is float else given
    for key in given_data:
        if key not in known:
            problems.append(_unknown(where, key, names))
    return kind(**values)


def _names(kind: type) -> list[str]:
    """The keys of a section, of those that are numbered the first."""
    names: list[str] = []
    for field, rule, _ in _fields(kind):
        names.append(f"{rule.prefix}1" if isinstance(rule, _Numbered) else field.name)
    return names


def _unknown(where: str, key: Any, names: Iterable[str]) -> str:
    return f"{where}.{_short(key)}: unknown field{did_you_mean(key, names)}"


def _short(key: Any) -> str:
    """A key as an error shows it."""
    words = " ".join(str(key).split())
    return words if len(words) <= 60 else f"{words[:60]}…"


def _check(value: Any, rule: Rule, kind: type, name: str, problems: list[str]) -> bool:
    if isinstance(value, str):
        try:
            check_words(value, name)
        except UserError as error:
            problems.append(str(error))
            return False
    if rule.accepts(value, kind):
        return True
    close = did_you_mean(value, rule.choices) if isinstance(value, str) else ""
    problems.append(f"{name}: found {shown(value)}, expected {rule.expected(kind)}{close}")
    return False


def _read_numbered(
    rule: _Numbered, data: Mapping[str, Any], keys: list[str], where: str, problems: list[str]
) -> tuple[Any, ...]:
    if len(keys) > _MOST_NUMBERED:
        found = f"{len(keys):,} sections {rule.prefix}N"
        problems.append(f"{where}: found {found}, expected at most {_MOST_NUMBERED}")
        return (rule.kind(),)
    for number in range(1, len(keys) + 1):
        if f"{rule.prefix}{number}" not in data:
            problems.append(f"{where}.{rule.prefix}{number}: missing")
    return tuple(_read(rule.kind, data[key], f"{where}.{key}", problems) for key in keys)


def _read_variant(rule: _Variant, data: Any, where: str, problems: list[str]) -> Any:
    section = _mapping(data)
    if section is None:
        problems.append(f"{where}: found {shown(data)}, expected a {rule.key} and its fields")
        return rule.kinds[rule.default].settings()
    name = section.get(rule.key, rule.default)
    chosen = Rule(help=rule.help, choices=rule.kinds)
    if not _check(name, chosen, str, f"{where}.{rule.key}", problems):
        name = rule.default
    rules = _variant_rules(rule, name)
    values: dict[str, Any] = {}
    for key, value in section.items():
        if key == rule.key:
            continue
        if key not in rules:
            problems.append(_unknown(where, key, rules))
            continue
        inner, hint, owners = rules[key]
        if _check(value, inner, hint, f"{where}.{key}", problems) and name in owners:
            values[key] = float(value) if hint is float else value
    return rule.kinds[name].settings(**values)


def _read_weights(
    rule: _Weights, data: Any, where: str, problems: list[str]
) -> Mapping[str, float]:
    names = ", ".join(rule.names)
    section = _mapping(data)
    if section is None:
        problems.append(f"{where}: found {shown(data)}, expected numbers for {names}")
        return {}
    number = Rule(help=rule.help)
    kept: dict[str, float] = {}
    for key, value in section.items():
        if key not in rule.names:
            close = did_you_mean(key, rule.names)
            problems.append(f"{where}.{_short(key)}: unknown{close} (one of {names})")
        elif _check(value, number, float, f"{where}.{key}", problems):
            kept[key] = float(value)
    if not any(kept.values()):
        problems.append(f"{where}: every weight is 0; expected one above 0")
    return kept


def changed(value: Any, changes: Mapping[str, Any]) -> Any:
    """`value` with some of its fields changed; None leaves a field as it is.

    Raises:
        UserError: there is no such field, or a value is of the wrong type or range.
    """
    known = {field.name: (rule, hint) for field, rule, hint in _fields(_kind(value))}
    kept: dict[str, Any] = {}
    for name, given in changes.items():
        if name not in known:
            raise UserError(f"{_short(name)}: unknown{did_you_mean(name, known)}")
        if given is None:
            continue
        rule, hint = known[name]
        if not rule.accepts(given, hint):
            close = did_you_mean(str(given), rule.choices)
            raise UserError(f"{name}: found {shown(given)}, expected {rule.expected(hint)}{close}")
        kept[name] = float(given) if hint is float else given
    return dataclasses.replace(value, **kept)
