"""Reads how a package is built, from its source: rooms, floors, and what crosses a border.

`python tests/house.py [PACKAGE_FOLDER] [--list]` prints a table of counts, and with `--list`
each place. A room is a module or a sub-package at the top of the package.
"""

import argparse
import ast
import collections
import contextlib
import functools
import inspect
import pathlib
import pydoc
import re
import typing

# Ground first: a room imports from the rooms before it alone.
ROOMS = (
    *("_base", "distributions", "schedules", "patterns", "weights", "methods", "block_sparse"),
    *("training", "callbacks", "convert", "accounting", "compaction", "export", "channels"),
    *("factorized", "lottery", "analysis", "wann", "experiments"),
)
DOOR = "_base/keras_internals.py"  # The one file that may use private API.
TABLE = "_base/private_names.py"  # What the door uses, as a table.
_OF = ("weights", "block_sparse")
# Name -> the rooms that may ask for it.
FLAGS = {"is_packed": _OF, "is_block_sparse": _OF, "is_replacement": _OF}
FLAGS["trains_scores"] = ("methods",)
# Attribute -> the rooms that touch it.
STATE = dict.fromkeys(("_step", "_run", "_sparse_loop"), ("training",))
LINES_OF_FILE = 400
LINES_OF_FUNCTION = 60

_NO_ROOMS = ("", "__main__")
_PRIVATE_MODULES = ("keras.src.", "tensorflow.python.")
_PRIVATE = re.compile(r"_(?!_)[\w{}]*[a-zA-Z][\w{}]*")
# Documented all the same: of named tuples, `os`, and TensorFlow's resources.
_PUBLIC = {"_asdict", "_exit", "_fields", "_make", "_replace", "_create_resource", "_initialize"}
_BY_NAME = ("getattr", "hasattr", "setattr", "delattr", "attrgetter")
_OWN = re.compile(r"self|cls|super\(.*\)")
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_IMPORTS = (ast.Import, ast.ImportFrom)


class Place(typing.NamedTuple):
    """Where something was found, and what: a name, or an import of one module by another."""

    file: str
    line: int
    name: str  # The module that imports, for an import.
    target: str = ""  # The module that it imports.
    late: bool = False  # Whether a function imports it.

    def __str__(self):
        arrow = f" -> {self.target}" if self.target else ""
        return f"{self.file}:{self.line} {self.name}{arrow}{' (late)' * self.late}"


class Source(typing.NamedTuple):
    """A file of the package."""

    file: str  # Its path within the package.
    module: str  # Its name within the package: "" is the package itself.
    text: str
    nodes: list  # Each with whether a function holds it, and the name of its class.
    names: dict  # What imports bind -> the full name of what that means.

    def full(self, dotted):
        """Returns the full name of what a name in this file means."""
        first, _, rest = dotted.partition(".")
        return f"{self.names.get(first, first)}.{rest}".rstrip(".")


@functools.cache
def sources(package):
    """Returns the files of a package, read."""
    found = []
    for path in sorted(package.rglob("*.py")):
        inner = path.relative_to(package)
        parts = inner.parent.parts if inner.name == "__init__.py" else inner.with_suffix("").parts
        text, names = path.read_text(), {}
        nodes = list(_walk(ast.parse(text)))
        for node, _, _ in nodes:
            names.update((bound, means) for bound, means, _ in _imported(node, package, inner))
        found.append(Source(inner.as_posix(), ".".join(parts), text, nodes, names))
    return found


def _walk(node, late=False, cls=None):
    for child in ast.iter_child_nodes(node):
        yield child, late, cls
        inside = late or isinstance(child, (*_FUNCTIONS, ast.Lambda))
        yield from _walk(child, inside, child.name if isinstance(child, ast.ClassDef) else cls)


def _imported(node, package, file):
    """Returns what an import imports: the names it binds, what these mean, and the full names."""
    start = ""
    if isinstance(node, ast.ImportFrom):
        folders = (package.name, *file.parent.parts)
        above = folders[: len(folders) - node.level + 1] if node.level else ()
        start = ".".join([*above, *filter(None, [node.module]), ""])
    found = [(a.asname, start + a.name) for a in node.names] if isinstance(node, _IMPORTS) else []
    if isinstance(node, ast.Import):  # `import a.b` binds `a`.
        return [(name or room(full), full if name else room(full), full) for name, full in found]
    return [(name or full.split(".")[-1], full, full) for name, full in found]


def room(module):
    """Returns the room of a module, or of a file, given by its path within the package."""
    return re.split(r"[./]", module)[0]


def rooms(package):
    """Returns the names of the rooms: what lies at the top, the face and `__main__` aside."""
    return sorted({room(source.module) for source in sources(package)} - set(_NO_ROOMS))


def _dotted(node):
    """Returns "a.b.c" for such an expression, "" for others."""
    if isinstance(node, ast.Name):
        return node.id
    value = _dotted(node.value) if isinstance(node, ast.Attribute) else ""
    return f"{value}.{node.attr}" if value else ""


@functools.cache
def imports(package):
    """Returns all imports of modules by one another; a use of `tf_rigl.name` is one as well."""
    modules, found = {source.module for source in sources(package)}, set()
    for source in sources(package):
        for node, late, _ in source.nodes:
            for full in _asked_for(node, source, package):
                target = _module_of(full, package, modules)
                if target and target != source.module:
                    found.add(Place(source.file, node.lineno, source.module, target, late))
    return sorted(found)


def _asked_for(node, source, package):
    """Returns the full names that a node imports, or looks up in an imported package."""
    if isinstance(node, _IMPORTS):
        return [full for *_, full in _imported(node, package, pathlib.PurePath(source.file))]
    if isinstance(node, ast.Attribute):
        dotted = _dotted(node)
        return [source.full(dotted)] if source.names.get(room(dotted)) == package.name else []
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
        return [str(arg.value) for arg in node.args if isinstance(arg, ast.Constant)]
    return []


def _module_of(full, package, modules):
    """Returns the module that holds a name of the package; "" if none does but the face."""
    if not full.startswith(f"{package.name}."):
        return ""
    first, *rest = full.split(".")[1:]
    if first not in modules:
        first = _lazy_names(package).get(first, first).removeprefix(f"{package.name}.")
    parts = [*first.split("."), *rest]
    starts = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next((start for start in starts if start in modules), "")


@functools.cache
def _lazy_names(package):
    """Returns what the face of a package maps to modules: the dicts `_HOME` and `_MODULES`."""
    face, names = package / "__init__.py", {}
    for node in ast.parse(face.read_text()).body if face.is_file() else ():
        targets = {_dotted(target) for target in getattr(node, "targets", ())}
        if targets & {"_HOME", "_MODULES"} and isinstance(node.value, ast.Dict):
            names |= ast.literal_eval(node.value)
    return names


def graph(package, late=True, modules=False):
    """Returns which rooms (or modules) each one imports, as a dict of sets."""
    name = str if modules else room
    found = {name(s.module): set() for s in sources(package) if s.module not in _NO_ROOMS}
    for arrow in imports(package):
        source, target = name(arrow.name), name(arrow.target)
        if source in found and target in found and source != target and (late or not arrow.late):
            found[source].add(target)
    return found


def _groups(edges):
    """Returns for each node those that it forms a cycle with, itself included."""

    def reached(start):
        seen, left = set(), [start]
        while left:
            new = edges[left.pop()] - seen
            seen, left = seen | new, [*left, *new]
        return seen

    beyond = {node: reached(node) for node in edges}
    return {n: frozenset({n, *(m for m in beyond[n] if n in beyond[m])}) for n in edges}


def cycles(edges):
    """Returns the sets of nodes of a graph that import one another in a circle, as tuples."""
    return sorted({tuple(sorted(group)) for group in _groups(edges).values() if len(group) > 1})


def floors(edges):
    """Returns the longest chain of imports, ground first; a cycle counts as one floor."""
    groups = _groups(edges)
    below = {group: set() for group in groups.values()}
    for node, targets in edges.items():
        below[groups[node]] |= {groups[target] for target in targets} - {groups[node]}

    @functools.cache
    def chain(group):
        start = max(sorted(map(chain, below[group])), key=len, default=())
        return (*start, "+".join(sorted(group)))

    return max(sorted(map(chain, below)), key=len, default=())


def arrows_up(package, order=ROOMS):
    """Returns the imports of a higher room by a lower one."""
    number = {name: n for n, name in enumerate(order)}
    placed = [a for a in imports(package) if {room(a.name), room(a.target)} <= set(number)]
    return [a for a in placed if number[room(a.name)] < number[room(a.target)]]


def private_uses(package):
    """Returns the uses of names of others that begin with an underscore, as `Place`s.

    A name that the package defines is its own, unless bases from elsewhere know it as well.
    """
    known, found = _known(package), []
    ours, anyones = _definitions(package), set().union(*known.values())
    for source in sources(package):
        if source.file == TABLE:  # It lists names, and uses none.
            continue
        for node, _, cls in source.nodes:
            for name, kind in _private_names(node, source, package):
                inherited = name in known.get(cls, ())
                is_theirs = {
                    "import": True,
                    "method": cls and inherited,
                    "own": inherited or name not in ours,
                    "attribute": name in anyones or name not in ours,
                    "looked up": name not in anyones and name not in ours,
                    "text": name in anyones,  # What is looked up is a text too.
                }
                if is_theirs[kind]:
                    found.append(Place(source.file, node.lineno, name))
    return sorted(found)


def _private_names(node, source, package):
    """Returns the private names that stand at a node, whosever they are, each with its kind."""
    found = []
    if isinstance(node, _IMPORTS):
        names = [name for name in _asked_for(node, source, package) if room(name) != package.name]
        private = [n for n in names if _PRIVATE.fullmatch(n.split(".")[-1])]
        private += [n for n in names if f"{n}.".startswith(_PRIVATE_MODULES) and n not in private]
        return [(name, "import") for name in private]
    if isinstance(node, _FUNCTIONS):
        found = [(node.name, "method")]
    elif isinstance(node, ast.Call) and _dotted(node.func).split(".")[-1] in _BY_NAME:
        texts = [ast.unparse(a) for a in node.args if isinstance(a, (ast.Constant, ast.JoinedStr))]
        found = [(text.lstrip("f").strip("'\""), "looked up") for text in texts]
    elif isinstance(node, ast.Constant):
        found = [(str(node.value), "text")]
    elif isinstance(node, ast.Attribute):
        full = source.full(_dotted(node))
        if f"{full}." in _PRIVATE_MODULES:
            return [(full, "import")]
        found = [(node.attr, "own" if _OWN.fullmatch(ast.unparse(node.value)) else "attribute")]
    return [(n, k) for n, k in found if _PRIVATE.fullmatch(n) and n not in _PUBLIC]


def _definitions(package):
    """Returns the names of modules, functions, classes and attributes that the package defines."""
    found = {name for source in sources(package) for name in source.module.split(".")}
    for source in sources(package):
        for node, late, _ in source.nodes:
            if isinstance(node, (*_FUNCTIONS, ast.ClassDef)):
                found.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and not late:
                found.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                found |= {node.attr} if _OWN.fullmatch(ast.unparse(node.value)) else set()
    return found


@functools.cache
def _known(package):
    """Returns, for each class of ours, the private names that its bases from elsewhere know."""
    bases, imported = collections.defaultdict(set), {}
    for source in sources(package):
        imported |= {n: means for n, means in source.names.items() if room(means) != package.name}
        for node, _, _ in source.nodes:
            if isinstance(node, ast.ClassDef):
                bases[node.name] |= {source.full(_dotted(base)) for base in node.bases}
    theirs, related = {name: set() for name in bases}, {name: set() for name in bases}
    for name, base in [(name, base) for name, all_of in bases.items() for base in all_of]:
        last = base.split(".")[-1]
        if room(base) in (base, package.name) and last in bases:
            related[name].add(last)
            related[last].add(name)
        else:  # What only a module of ours imports is from elsewhere too.
            base = imported.get(last, base) if room(base) == package.name else base
            theirs[name] |= _private_names_of(base)
    # Classes of one family, those mixed in included, know the same.
    return {n: set().union(*(theirs[m] for m in group)) for n, group in _groups(related).items()}


@functools.cache
def _private_names_of(base):
    """Returns the private names that a class from elsewhere has, or uses of itself."""
    cls, names = pydoc.locate(base), set()
    for parent in cls.__mro__[:-1] if inspect.isclass(cls) else ():
        names |= set(vars(parent))
        with contextlib.suppress(OSError, TypeError):  # It may not be written in Python.
            names.update(re.findall(r"\.(\w+)", inspect.getsource(parent)))
    return {name for name in names if _PRIVATE.fullmatch(name)}


def long_files(package, limit=LINES_OF_FILE):
    """Returns the files of more lines than the limit."""
    sizes = {source.file: source.text.count("\n") for source in sources(package)}
    return [Place(file, 1, f"{size} lines") for file, size in sizes.items() if size > limit]


def long_functions(package, limit=LINES_OF_FUNCTION):
    """Returns the functions of more lines of code: no blank ones, comments or docstring."""
    found = []
    for source in sources(package):
        lines = [line.strip() for line in source.text.splitlines()]
        for node, _, _ in source.nodes:
            if isinstance(node, _FUNCTIONS):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                numbers = {n for part in body for n in range(part.lineno, part.end_lineno + 1)}
                code = [n for n in numbers if lines[n - 1] and not lines[n - 1].startswith("#")]
                if len(code) > limit:
                    found.append(Place(source.file, node.lineno, f"{node.name}: {len(code)} lines"))
    return found


def mentions(package, names, kinds=(ast.Name, ast.Attribute, ast.Constant)):
    """Returns where names stand, as nodes of these kinds, outside the rooms that may use them."""
    found = []
    for source in sources(package):
        for node in (node for node, _, _ in source.nodes if isinstance(node, kinds)):
            name = next(getattr(node, f) for f in ("id", "attr", "value") if hasattr(node, f))
            if name in names and room(source.module) not in names[name]:
                found.append(Place(source.file, node.lineno, name))
    return sorted(found)


# Of a package: calls of `id`, and `id` handed on; flags and state where they do not belong.
joins_by_id = functools.partial(mentions, names={"id": ()}, kinds=(ast.Name,))
flags_outside = functools.partial(mentions, names=FLAGS)
state_outside = functools.partial(mentions, names=STATE, kinds=(ast.Attribute, ast.Constant))


def counts(package):
    """Returns what there is to count, as a dict of a label to the list of what was found."""
    private = private_uses(package)
    outside = [place for place in private if place.file != DOOR]
    up, late = arrows_up(package), [arrow for arrow in imports(package) if arrow.late]
    return {
        "rooms": rooms(package),
        "rooms without a place in the order": sorted({*rooms(package)} - {*ROOMS}),
        "floors": floors(graph(package)),
        "floors by imports at the top of modules": floors(graph(package, late=False)),
        "floors of modules": floors(graph(package, modules=True)),
        "cycles of rooms": cycles(graph(package)),
        "cycles of modules": cycles(graph(package, modules=True)),
        "arrows up": [arrow for arrow in up if not arrow.late],
        "arrows up, late": [arrow for arrow in up if arrow.late],
        "late imports between rooms": [a for a in late if room(a.name) not in ("", room(a.target))],
        "private API outside the door": outside,
        "... names": sorted({place.name for place in outside}),
        "... files": sorted({place.file for place in outside}),
        "private API inside the door": [place for place in private if place.file == DOOR],
        f"files above {LINES_OF_FILE} lines": long_files(package),
        f"functions above {LINES_OF_FUNCTION} lines of code": long_functions(package),
        "joins by id()": joins_by_id(package),
        "flags outside their rooms": flags_outside(package),
        "state of the training outside of it": state_outside(package),
    }


def main():
    """Prints the table of counts of the package whose folder is given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    beside = pathlib.Path(__file__).resolve().parents[1] / "tf_rigl"
    parser.add_argument("package", nargs="?", type=pathlib.Path, default=beside)
    parser.add_argument("--list", action="store_true", help="print each place as well")
    options = parser.parse_args()
    for label, found in counts(options.package.resolve()).items():
        print(f"{len(found):5}  {label}")
        for item in found if options.list else ():
            print(f"         {' + '.join(item) if type(item) is tuple else item}")


if __name__ == "__main__":
    main()
