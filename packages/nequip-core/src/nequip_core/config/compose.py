"""A YAML file and overrides become one typed `Config`; every error in them is found before data is read.

Hydra chooses the groups (``defaults``: the model, presets of plugins) and parses the values of overrides. The keys of
the file and of the overrides are laid over the typed result here, one by one, so that each can be refused with its
line, what was expected and the nearest key that exists.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, get_args, get_origin, get_type_hints

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nequip_core.config.schema import MOVED, RULES, Callback, Config, Rule
from nequip_core.errors import ConfigError
from nequip_core.keys import MISSING
from nequip_core.plugins.manager import Registry

GROUPS = "nequip_core.config.groups"
BASE = "nequip_core_base"
"""The name under which Hydra finds what a file calls base: a file base.yaml may lie beside it."""
COMMAND_LINE = "command line"

Check = Callable[[Config, Registry], Iterable[tuple[str, str]]]
"""Compares values with each other and with the machine: pairs of a dotted key and a sentence that names it."""


class Problem(NamedTuple):
    """One thing wrong with a config. ``place``: ``file:line``, ``command line``, or empty."""

    place: str
    text: str

    def __str__(self) -> str:
        return f"{self.place}: {self.text}" if self.place else self.text


class Entry(NamedTuple):
    """A key that somebody wrote. ``text``: a scalar as it stands in the file, for keys that hold text."""

    key: str
    value: Any
    place: str
    text: str | None = None


class YamlLoader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML with 1.2's booleans and numbers: ``No`` is nobelium, 1e-3 a number, 01:30:00 a text, dates are texts."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}


class YamlDumper(yaml.SafeDumper):  # type: ignore[misc]
    """Quotes what either version of YAML would read as something else than text."""


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", "<"),
):
    for _class in (YamlLoader, YamlDumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))


def compose(path: str | Path, overrides: Sequence[str], registry: Registry, checks: Sequence[Check] = ()) -> Config:
    """The config of a file and of ``key=value`` overrides, resolved and typed.

    Args:
        path: YAML file with a ``defaults:`` list.
        overrides: ``key=value``, ``+key=value`` inside free dictionaries, ``model=NAME``.
        registry: gives the models, the names that keys may hold, and packages of YAML groups.
        checks: run on the config when its keys are typed; what they find is reported with the rest.

    Raises:
        ConfigError: all that is wrong, each with file and line.
    """
    path = Path(path)
    problems: list[Problem] = []
    root = _read(path)
    content = _content(root, path, problems)
    defaults = _defaults(content, root, path)
    words = [_parse_override(word, path, problems) for word in overrides]
    changes = [word for word in words if word is not None]
    groups = {name for item in defaults if isinstance(item, dict) for name in item}
    choices = [change for change in changes if change.key_or_group in groups and isinstance(change.value(), str)]
    try:
        tree = bare = _bare(path, defaults, [], registry)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    if choices:
        try:
            tree = _bare(path, defaults, choices, registry)
        except ConfigError as error:
            problems.append(Problem(COMMAND_LINE, str(error)))
    layer = Layer(tree, registry, problems)

    written = [entry for entry in _entries(root, "", path, layer.is_block) if entry.key != "defaults"]
    lacking = _lacking(written, bare, tree, layer)
    if lacking:
        (choice,) = (change for change in choices if change.key_or_group == "model")
        problems.append(
            Problem(
                COMMAND_LINE,
                f"{choice.input_line}: the model {choice.value()!r} has no {_listed(lacking)}. "
                "Remove them from the file, or use a file whose model block names common keys only.",
            )
        )
    for entry in written:
        if entry not in lacking:
            layer.put(entry)
    for change in changes:
        if change not in choices:
            layer.override(change)
    return layer.finish(path, checks)


def to_yaml(config: Config, comment: str = "") -> str:
    """A config as a file that `compose` reads back to the same values, all keys written.

    Args:
        config: resolved.
        comment: first line.
    """
    lines = [f"# {comment}"] if comment else []
    lines += ["defaults:", "  - base", f"  - model: {config.model.name}", "  - _self_", ""]

    def write(node: Any, indent: str) -> None:
        for item in dataclasses.fields(node):
            value = getattr(node, item.name)
            if dataclasses.is_dataclass(value):
                lines.append(f"{indent}{item.name}:")
                write(value, f"{indent}  ")
            elif node is not config.model or item.name != "name":
                lines.append(f"{indent}{item.name}: {_flow(value)}")

    write(config, "")
    return "\n".join([*lines, ""])


def _flow(value: Any) -> str:
    """A value on one line."""
    if isinstance(value, list):
        value = [dataclasses.asdict(item) if isinstance(item, Callback) else item for item in value]
    text = yaml.dump(
        value, Dumper=YamlDumper, default_flow_style=True, allow_unicode=True, width=float("inf"), sort_keys=False
    )
    return str(text).removesuffix("\n").removesuffix("\n...")


def keys_of(config: Config) -> Iterator[tuple[str, Any]]:
    """Every key of a config and its value, dotted; dictionaries and lists are values."""

    def walk(node: Any, prefix: str) -> Iterator[tuple[str, Any]]:
        for item in dataclasses.fields(node):
            value = getattr(node, item.name)
            if dataclasses.is_dataclass(value):
                yield from walk(value, f"{prefix}{item.name}.")
            else:
                yield f"{prefix}{item.name}", value

    return walk(config, "")


def _read(path: Path) -> yaml.MappingNode:
    """The file as YAML nodes, which know their lines."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file in UTF-8"
        raise ConfigError(
            f"{path}: the config file can not be read: {reason}. Give the path of a YAML file."
        ) from error
    try:
        root = yaml.compose(text, Loader=YamlLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{path}:{line}: not YAML: {error.problem}. Check indentation, colons and quotes.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}.") from error
    if root is None:
        raise ConfigError(f"{path}: the file is empty.\n{_missing_lines()}")
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{path}:1: expected keys and values (seed: 1), received a {_kind(_construct(root))}.")
    return root


def _construct(node: yaml.Node) -> Any:
    loader = YamlLoader("")
    return loader.construct_document(node)


def _missing_lines() -> str:
    return (
        "A config starts with a list of what it builds on; without it no key has a default. Put these lines first:\n"
        "  defaults:\n    - base\n    - model: nequip\n    - _self_"
    )


def _content(root: yaml.MappingNode, path: Path, problems: list[Problem]) -> dict[Any, Any]:
    """The file's content; keys written twice and keys that are no text are problems."""
    for node, prefix in _mappings(root, ""):
        lines: dict[str, int] = {}
        for name, _ in node.value:
            line = name.start_mark.line + 1
            if name.value in lines and name.value != "<<":
                problems.append(
                    Problem(
                        f"{path}:{line}", f"{prefix}{name.value} is written twice, first in line {lines[name.value]}."
                    )
                )
            lines.setdefault(str(name.value), line)
    try:
        content = _construct(root)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{path}:{line}: not YAML: {error.problem}.") from error
    assert isinstance(content, dict)
    return content


def _mappings(node: yaml.Node, prefix: str) -> Iterator[tuple[yaml.MappingNode, str]]:
    if isinstance(node, yaml.MappingNode):
        yield node, prefix
        for name, value in node.value:
            yield from _mappings(value, f"{prefix}{name.value}.")


def _defaults(content: Mapping[str, Any], root: yaml.MappingNode, path: Path) -> list[Any]:
    """The file's ``defaults`` list, checked: base, the model, and the file itself last."""
    if "defaults" not in content:
        raise ConfigError(f"{path}: there is no `defaults:` list.\n{_missing_lines()}")
    defaults = content["defaults"]
    line = next(name.start_mark.line + 1 for name, _ in root.value if name.value == "defaults")
    if not isinstance(defaults, list) or not all(isinstance(item, (str, dict)) for item in defaults):
        raise ConfigError(f"{path}:{line}: defaults is not a list.\n{_missing_lines()}")
    models = [item["model"] for item in defaults if isinstance(item, dict) and "model" in item]
    if "base" not in defaults or len(models) != 1 or not isinstance(models[0], str):
        raise ConfigError(f"{path}:{line}: defaults names no base, or not one model.\n{_missing_lines()}")
    if "_self_" in defaults and defaults[-1] != "_self_":
        raise ConfigError(f"{path}:{line}: defaults: _self_ is not the last. Move it there: the file's own keys win.")
    return defaults


def _entries(node: yaml.Node, prefix: str, path: Path, is_block: Callable[[str], bool]) -> Iterator[Entry]:
    """The keys below a mapping, down to the values; blocks of the schema are opened, free dictionaries are values."""
    loader = YamlLoader("")
    assert isinstance(node, yaml.MappingNode)
    loader.flatten_mapping(node)
    for name, value in node.value:
        key = f"{prefix}{name.value}"
        if isinstance(value, yaml.MappingNode) and is_block(key):
            yield from _entries(value, f"{key}.", path, is_block)
        else:
            text = value.value if isinstance(value, yaml.ScalarNode) else None
            yield Entry(key, _construct(value), f"{path}:{name.start_mark.line + 1}", text)


def _parse_override(word: str, path: Path, problems: list[Problem]) -> Override | None:
    """One word of the command line by Hydra's grammar; a value that the grammar refuses or that is a path is quoted."""
    name, equals, value = word.partition("=")
    place = COMMAND_LINE
    if not equals:
        expected = "key=value, for example seed=1"
        problems.append(Problem(place, f"{word!r} changes no key. Expected {expected}. Only one config file is read."))
        return None
    parser = OverridesParser.create()
    parsed: Override | None
    try:
        parsed = parser.parse_override(word)
    except HydraException:
        parsed = None
    plain = parsed is not None and not parsed.is_sweep_override()
    number = plain and parsed is not None and isinstance(parsed.value(), (int, float, bool))
    if value and not number and (not plain or Path(value).exists()):
        if not Path(value).exists() and value[0] in "[{":
            problems.append(
                Problem(place, f"{word}: the value is no list or dictionary. Put quotes around names in it.")
            )
            return None
        if not Path(value).exists() and parsed is not None:
            problems.append(
                Problem(
                    place, f"{word}: a key takes one value, and no file of that name exists. Write a list as [1,2,3]."
                )
            )
            return None
        quoted = value.replace("\\", "\\\\").replace("'", "\\'")
        try:
            parsed = parser.parse_override(f"{name}='{quoted}'")
        except HydraException:
            parsed = None
    if parsed is None or parsed.package is not None:
        problems.append(
            Problem(place, f"{word!r}: {name!r} is no key. Expected key=value, for example data.path=FILE.")
        )
        return None
    if parsed.type is OverrideType.DEL:
        problems.append(Problem(place, f"{word}: keys can not be removed. Set {name[1:]} to null or another value."))
        return None
    return dataclasses.replace(parsed, input_line=word)


def _bare(path: Path, defaults: list[Any], choices: Sequence[Override], registry: Registry) -> DictConfig:
    """The groups that ``defaults`` and the command line choose, typed, without the file's own keys."""
    store = ConfigStore.instance()
    store.store(name=BASE, node=Config)
    for name, entry in registry.models.items():
        store.store(group="model", name=name, node=entry.config.load())
    chosen = [BASE if item == "base" else item for item in defaults if item != "_self_"]
    store.store(name="nequip_file", node={"defaults": chosen})
    packages = [GROUPS, *(name for name in registry.config_modules if name != GROUPS)]
    search = "hydra.searchpath=[" + ",".join(f"pkg://{package}" for package in packages) + "]"
    try:
        with initialize_config_dir(str(path.parent.resolve()), version_base="1.3"):
            words = [search, *(f"{change.key_or_group}={change.value()}" for change in choices)]
            tree = hydra_compose("nequip_file", overrides=words)
    except MissingConfigException as error:
        missing = str(error.missing_cfg_file or "")
        group, _, name = missing.rpartition("/")
        known = sorted({*(error.options or ()), *(registry.models if group == "model" else ())})
        raise ConfigError(
            f"{group or 'defaults'}: there is no {name!r}. {_nearest(name, known)}"
            f"Known: {', '.join(known) or 'nothing'}. See `nequip plugins`."
        ) from error
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"defaults: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ConfigError("defaults: the files that they name build on each other in a circle.") from error
    return tree


def _lacking(written: Sequence[Entry], bare: DictConfig, tree: DictConfig, layer: Layer) -> list[Entry]:
    """The file's model keys that its own model has and the one chosen on the command line lacks."""
    ours, theirs = (set(get_type_hints(OmegaConf.get_type(each.model))) for each in (bare, tree))
    names = ours - theirs
    return [entry for entry in written if entry.key.startswith("model.") and entry.key.split(".")[1] in names]


def _listed(entries: Iterable[Entry]) -> str:
    return ", ".join(f"{entry.key} ({entry.place})" for entry in entries)


def _nearest(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"The nearest is {close[0]}. " if close else ""


def _kind(value: Any) -> str:
    kinds = {str: "text", bool: "true or false", int: "whole number", float: "number", list: "list", dict: "dictionary"}
    return kinds.get(type(value), "null")


def _expected(annotation: Any) -> str:
    """A type in words."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is list:
        if isinstance(args[0], type) and dataclasses.is_dataclass(args[0]):
            return f"a list of {{{', '.join(f'{item.name}: ...' for item in dataclasses.fields(args[0]))}}}"
        return f"a list of {_plural(args[0])}"
    if origin is dict:
        return "a dictionary {key: value}"
    if args and type(None) in args:
        (inner,) = (item for item in args if item is not type(None))
        return f"{_expected(inner)} or null"
    return {
        str: "text",
        bool: "true or false",
        int: "a whole number",
        float: "a number",
    }.get(annotation, "keys and values below it")


def _plural(annotation: Any) -> str:
    return {str: "names", int: "whole numbers", float: "numbers"}.get(annotation, "values")


class Layer:
    """The typed tree of the chosen groups, over which the keys of the file and of the command line are laid."""

    def __init__(self, tree: DictConfig, registry: Registry, problems: list[Problem]) -> None:
        self.tree = tree
        self.registry = registry
        self.problems = problems
        self.types: dict[str, Any] = {}
        self.fields: dict[str, dataclasses.Field[Any]] = {}
        self.blocks: set[str] = set()
        self.places: dict[str, str] = {}
        self.refused: set[str] = set()
        self._walk(Config, "")

    def _walk(self, cls: type, prefix: str) -> None:
        hints = get_type_hints(cls)
        for item in dataclasses.fields(cls):
            key = f"{prefix}{item.name}"
            inner = OmegaConf.get_type(self.tree.model) if key == "model" else hints[item.name]
            self.fields[key] = item
            if isinstance(inner, type) and dataclasses.is_dataclass(inner):
                self.blocks.add(key)
                self._walk(inner, f"{key}.")
            else:
                self.types[key] = inner

    def is_block(self, key: str) -> bool:
        """Whether a key holds further keys of the schema."""
        return key in self.blocks

    def is_free(self, key: str) -> bool:
        """Whether a key lies inside a free dictionary, where any name may be added."""
        return any(
            key.startswith(f"{name}.") and (annotation is Any or get_origin(annotation) is dict)
            for name, annotation in self.types.items()
        )

    def refuse(self, key: str, place: str, text: str) -> None:
        """Note a problem with a key; nothing else is said about it."""
        self.refused.add(key)
        self.problems.append(Problem(place, text))

    def override(self, change: Override) -> None:
        """Lay a ``key=value`` of the command line over the tree."""
        key, word = change.key_or_group, str(change.input_line)
        value = change.value()
        adds = change.type is not OverrideType.CHANGE
        place = f"{COMMAND_LINE}, {word}"
        if adds and not self.is_free(key) and (key in self.types or key in self.blocks):
            free = ", ".join(name for name, annotation in self.types.items() if get_origin(annotation) is dict)
            self.refuse(key, place, f"+ adds entries to free dictionaries ({free}). Leave it out here.")
            return
        written = None if isinstance(value, (dict, list)) else word.partition("=")[2]
        self.put(Entry(key, value, place, value if isinstance(value, str) else written))

    def put(self, entry: Entry) -> None:
        """Lay one key over the tree, or note what is wrong with it."""
        key, value, place = entry.key, entry.value, entry.place
        if key in self.blocks:
            self._put_block(entry)
        elif key == "model.name":
            if value != self.tree.model.name:
                self.refuse(
                    key, place, "model.name: the model is chosen by `- model: NAME` in defaults, or by model=NAME."
                )
        elif key in self.types or (self.is_free(key) and place.startswith(COMMAND_LINE)):
            self._set(entry)
        else:
            self.refuse(key, place, self._unknown(key))

    def _put_block(self, entry: Entry) -> None:
        if isinstance(entry.value, dict):
            for name, value in entry.value.items():
                self.put(Entry(f"{entry.key}.{name}", value, entry.place))
        elif entry.value is not None:
            names = [name for name in (*self.types, *self.blocks) if name.rpartition(".")[0] == entry.key]
            self.refuse(
                entry.key,
                entry.place,
                f"{entry.key}: expected the keys below it ({', '.join(names[:4])} ...), received {entry.value!r}.",
            )

    def _set(self, entry: Entry) -> None:
        key, value = entry.key, entry.value
        annotation = self.types.get(key, Any)
        inner = next((item for item in get_args(annotation) if item is not type(None)), annotation)
        if str in (annotation, inner) and get_origin(annotation) is not list and value is not None:
            value = value if entry.text is None else entry.text
        self.places[key] = entry.place
        self.refused.discard(key)
        free = annotation is Any or get_origin(annotation) is dict
        parent = OmegaConf.select(self.tree, key.rpartition(".")[0])
        if key not in self.types and not isinstance(parent, DictConfig):
            outer = key.rpartition(".")[0]
            self.refuse(outer, entry.place, f"{outer}: expected a dictionary to add to, received {parent!r}.")
            return
        try:
            if bool in (annotation, inner) and not isinstance(value, (bool, str)):
                raise OmegaConfBaseException
            OmegaConf.update(self.tree, key, value, merge=True, force_add=free)
        except OmegaConfBaseException:
            expected = self._expected(key, annotation)
            self.refuse(key, entry.place, f"{key}: expected {expected}, received {value!r}{_type_of(value)}.")

    def _expected(self, key: str, annotation: Any) -> str:
        rule = RULES.get(key)
        return rule.expected if rule and annotation is Any else _expected(annotation)

    def _unknown(self, key: str) -> str:
        if key in MOVED:
            return f"{key} is no key here: {MOVED[key]} does this."
        if key.startswith("hydra"):
            return f"{key} is no key: `nequip train` takes none of these settings. The run's folder is run.dir."
        parent = key.rpartition(".")[0]
        if parent in self.types:
            return f"{key} is no key: {parent} is a value, not a block."
        known = [name for name in (*self.types, *self.blocks) if name != "model.name"]
        last = key.rpartition(".")[2]
        same = [name for name in known if name.rpartition(".")[2] == last]
        near = difflib.get_close_matches(key, same or known, n=1, cutoff=0.0)[0]
        self.refused.add(near)
        beside = [name.rpartition(".")[2] for name in known if parent and name.rpartition(".")[0] == parent]
        keys = f" The keys of {parent} are {', '.join(beside)}." if beside else ""
        return f"{key} is no key. The nearest is {near}: {self.fields[near].metadata['text']}.{keys}"

    def finish(self, path: Path, checks: Sequence[Check]) -> Config:
        """The config object, or all that is wrong."""
        tree = self.tree
        if OmegaConf.is_missing(tree.run, "name"):
            tree.run.name = path.stem
        self._check_run_dir()
        rules = {**RULES, **_registry_rules(self.registry)}
        for key in self.types:
            self._check(key, rules.get(key))
        OmegaConf.resolve(tree)
        config = OmegaConf.to_object(tree)
        assert isinstance(config, Config)
        config.model = _nobelium(config.model)
        for check in checks:
            for key, text in check(config, self.registry):
                if key not in self.refused:
                    self.refuse(key, self.places.get(key, ""), text)
        if self.problems:
            raise ConfigError(_report(self.problems, path))
        return config

    def _check_run_dir(self) -> None:
        """Before interpolations are resolved, since a time would be resolved too."""
        key, rule = "run.dir", RULES["run.dir"]
        value = OmegaConf.to_container(self.tree.run, resolve=False)["dir"]  # type: ignore[call-overload,index]
        if not rule.accepts(str(value)):
            self.refuse(key, self.places.get(key, ""), f"{key}: expected {rule.expected}; received {value!r}.")
            self._stand_in(key)

    def _check(self, key: str, rule: Rule | None) -> None:
        """Whether a key has a value, whether its interpolation resolves, and whether its rule accepts it."""
        place = self.places.get(key, "")
        try:
            value = OmegaConf.select(self.tree, key)
            missing = OmegaConf.is_missing(OmegaConf.select(self.tree, key.rpartition(".")[0]), key.rpartition(".")[2])
        except OmegaConfBaseException as error:
            self.refuse(key, place, f"{key}: {str(error).splitlines()[0]}.")
            self._stand_in(key)
            return
        if missing:
            self._stand_in(key)
        if key in self.refused:
            return
        if missing:
            item = self.fields[key].metadata
            unit = f", in {item['unit']}" if item["unit"] else ""
            self.refuse(key, place, f"{key} is missing and has no default: {item['text']}{unit}. Give {key}=VALUE.")
            return
        value = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        if rule is not None and not rule.accepts(value):
            near = _nearest(str(value), rule.words)
            self.refuse(key, place, f"{key}: expected {rule.expected}, received {value!r}. {near}".rstrip())
            self._stand_in(key)

    def _stand_in(self, key: str) -> None:
        """A value in place of one that is missing or refused, so that the checks of the other keys can run."""
        item = self.fields[key]
        value = item.default_factory() if callable(item.default_factory) else item.default
        if value == MISSING:
            value = {float: 1e6, int: 1, bool: False}.get(self.types[key], "unknown")
        OmegaConf.update(self.tree, key, value, merge=False)


def _registry_rules(registry: Registry) -> dict[str, Rule]:
    """Rules of the keys that hold a name of the registry."""

    def names(kind: str) -> tuple[str, ...]:
        return tuple(sorted(name for entry_kind, name in registry.training if entry_kind == kind))

    def dotted(*words: str) -> Rule:
        expected = f"{' | '.join(words)} | a dotted class name"
        return Rule(
            expected, lambda v: v in words or re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", v) is not None, words
        )

    def known(*words: str) -> Rule:
        return Rule(" | ".join(words), lambda v: v in words, words)

    function = known(*names("loss"))
    return {
        **{f"training.loss.{term}.function": function for term in ("energy", "forces", "stress")},
        "data.neighbor_list": known("auto", *sorted(registry.neighbor_lists)),
        "training.optimizer.name": dotted(*names("optimizer")),
        "training.scheduler.name": dotted(*names("scheduler")),
        "trainer.strategy": known("auto", *names("strategy")),
    }


def _nobelium(model: Any) -> Any:
    """YAML groups of plugins are read as YAML 1.1, where No is false: it is an element here."""
    types = model.types
    if isinstance(types, list) and False in types:
        return dataclasses.replace(model, types=["No" if name is False else name for name in types])
    return model


def _type_of(value: Any) -> str:
    return "" if value is None or isinstance(value, (list, dict)) else f" ({_kind(value)})"


def _report(problems: Iterable[Problem], path: Path) -> str:
    """All problems: the file's by line, then the command line's."""

    def order(problem: Problem) -> tuple[int, int]:
        line = problem.place.rpartition(":")[2]
        return (0, int(line)) if line.isdigit() else (1, 0)

    unique = sorted(dict.fromkeys(problems), key=order)
    texts = [str(problem) if problem.place else f"{path}: {problem.text}" for problem in unique]
    if len(texts) == 1:
        return texts[0]
    return "\n".join([f"{len(texts)} errors in the config:", *(f"  {text}" for text in texts)])
