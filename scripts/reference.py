"""Prints every public name of the engine with its signature and docstring, as Markdown."""

import inspect
import re
import textwrap

import nas

HEAD = """# Reference

Every name of `import nas`, made of its docstring by `python scripts/reference.py`. Settings of a job, on the
command line, in a file and in Python, are the fields of [`Config`](#config). For commands, see `nas --help`.
"""


def main() -> None:
    print(reference())


def reference() -> str:
    """The whole file."""
    entries = {name: getattr(nas, name) for name in sorted(nas.__all__, key=str.lower)}
    contents = ", ".join(f"[{name}](#{name.lower()})" for name in entries)
    return "\n".join([HEAD, contents, *(entry(name, value) for name, value in entries.items())])


def entry(name: str, value: object) -> str:
    """One name: its signature, its docstring, and its public methods."""
    lines = [f"\n## {name}\n"]
    if not inspect.isroutine(value) and not inspect.isclass(value):
        return f"\n## {name}\n\n```python\n{name} = {value}\n```"
    lines += [f"```python\n{name}{signature(value)}\n```\n", prose(value)]
    if inspect.isclass(value):
        for method, member in vars(value).items():
            function = getattr(member, "__func__", getattr(member, "fget", member))
            if inspect.isfunction(function) and function.__doc__ and not method.startswith("_"):
                given = "" if isinstance(member, property) else signature(function)
                lines.append(f"- `{method}{given}`: {prose(function).splitlines()[0]}")
    return "\n".join(lines)


def signature(value: object) -> str:
    """That of a function or class, on lines that are not too long; none where a class is not to be made."""
    try:
        parts = [shown(part) for part in inspect.signature(value).parameters.values() if part.name != "self"]
    except ValueError:
        return ""
    short = f"({', '.join(parts)})"
    return short if len(short) < 90 else "(\n" + "".join(f"    {part},\n" for part in parts) + ")"


def shown(part: inspect.Parameter) -> str:
    """A parameter as its author wrote it; of a type that checks by functions, the default alone."""
    if not isinstance(part.annotation, str):
        part = part.replace(annotation=inspect.Parameter.empty)
    return re.sub(r"<function .*>", "...", re.sub(r": '([^']*)'", r": \1", str(part)))


def prose(value: object) -> str:
    """The docstring as Markdown: a list of fields stays as it is set."""
    text = inspect.getdoc(value) or ""
    first, _, rest = text.partition("\n")
    rest = textwrap.dedent(rest).strip()
    return f"{first}\n\n```text\n{rest}\n```\n" if rest else f"{first}\n"


if __name__ == "__main__":
    main()
