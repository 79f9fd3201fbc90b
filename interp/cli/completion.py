"""`interp completion`: what makes a shell complete commands, options and names; the names are in it, so TAB is fast."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple

import typer

from interp.cli import index
from interp.errors import nearest

SHELLS = ("bash", "zsh", "fish")
DTYPES = ("float32", "bfloat16", "float16", "float64")
KNOWN = {
    "analysis": "analyses",
    "task": "tasks",
    "method": "methods",
    "dtype": DTYPES,
    "device": ("cpu", "cuda", "mps"),
    "bos": ("default", "forced", "none"),
    "stack": ("encoder", "decoder"),
    "ablation": ("resample", "mean", "zero"),
    "kind": index.KINDS,
    "shell": SHELLS,
    "model": "zoo:",
    "name": "zoo",
}
"""What a parameter of this name takes: names of the index, or these words; of others, files."""


class Command(NamedTuple):
    """A command as a shell sees it: its words, its subcommands, option -> words (None: a flag), words of arguments."""

    path: tuple[str, ...]
    commands: tuple[str, ...]
    options: dict[str, tuple[str, ...] | None]
    arguments: tuple[str, ...]


def completion(
    context: typer.Context,
    shell: Annotated[str, typer.Argument(metavar="SHELL", help=", ".join(SHELLS) + ".")],
) -> None:
    """Print what makes SHELL complete commands, options and names of analyses, tasks, methods and models.

    Example: eval "$(interp completion bash)"
    """
    if shell not in SHELLS:
        raise typer.BadParameter(f"no completion for {shell!r}; {nearest(shell, SHELLS)}")
    found = list(commands(context.find_root().command))
    sys.stdout.write(_fish(found) if shell == "fish" else _bash(found, zsh=shell == "zsh"))


def commands(program: Any) -> Iterator[Command]:
    """Every command of a program (as click knows it), the program itself first."""

    def walk(command: Any, path: tuple[str, ...]) -> Iterator[Command]:
        below = getattr(command, "commands", {})
        options: dict[str, tuple[str, ...] | None] = {"--help": None}
        arguments: list[str] = []
        for p in command.params:
            flag = getattr(p, "is_flag", False)
            words = _words(p.name, path)
            if p.param_type_name == "argument":
                arguments += words
            else:
                options |= dict.fromkeys([*p.opts, *p.secondary_opts], None if flag else words)
        yield Command(path, tuple(below), options, tuple(arguments))
        for name, inner in below.items():
            yield from walk(inner, (*path, name))

    yield from walk(program, ())


def _words(name: str, path: tuple[str, ...]) -> tuple[str, ...]:
    """What may stand for a parameter; `--kind` of `sae train` and NAME of `reproduce` are other things."""
    if path == ("list",) and name == "name":
        return (*index.entries("analyses"), *index.entries("methods"))
    if path[:1] == ("reproduce",) or (path[:1] == ("sae",) and name == "kind"):
        return ()
    known = KNOWN.get(name, ())
    if not isinstance(known, str):
        return known
    names = tuple(index.entries("zoo" if known == "zoo:" else known))
    return tuple(f"zoo:{n}" for n in names) if known == "zoo:" else names


def _bash(found: list[Command], *, zsh: bool) -> str:
    """A function for bash; zsh runs it by its own emulation."""
    cases = "\n".join(_bash_case(command) for command in found)
    start = "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n" if zsh else ""
    groups = " ".join(shlex.quote(" ".join(c.path)) for c in found if c.commands and c.path)
    shell = "zsh" if zsh else "bash"
    return f"""# Completion of interp for {shell}: eval "$(interp completion {shell})"
{start}_interp() {{
  local line="${{COMP_LINE:0:$COMP_POINT}}" where="" cur="" prev="" word options="" words="" flags="" i
  local -a typed
  set -f; typed=($line); set +f
  [[ "$line" == *" " ]] && typed+=("")
  cur="${{typed[${{#typed[@]}}-1]}}"; prev="${{typed[${{#typed[@]}}-2]}}"
  for word in "${{typed[@]:1:${{#typed[@]}}-2}}"; do
    [[ "$word" == -* ]] && continue
    if [[ -z "$where" ]]; then where="$word"
    else for i in {groups}; do [[ "$where" == "$i" ]] && where="$where $word" && break; done
    fi
  done
  case "$where" in
{cases}
  esac
  for word in $flags; do [[ "$word" == "$prev" ]] && prev=""; done
  if [[ "$cur" == -* ]]; then words="$options"
  elif [[ "$prev" == -* ]]; then
    case "$where|$prev" in
{chr(10).join(line for command in found for line in _bash_values(command))}
      *) words="" ;;
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$cur"))
  [[ ${{#COMPREPLY[@]}} -eq 0 && "$cur" != -* ]] && COMPREPLY=($(compgen -f -- "$cur"))
  if [[ "$cur" == *:* && "$COMP_WORDBREAKS" == *:* ]]; then
    COMPREPLY=("${{COMPREPLY[@]#"${{cur%"${{cur##*:}}"}}"}}")
  fi
}}
complete -o filenames -o bashdefault -F _interp interp
"""


def _bash_case(command: Command) -> str:
    flags = " ".join(name for name, words in command.options.items() if words is None)
    options = " ".join(command.options)
    words = " ".join([*command.commands, *command.arguments])
    return f'    {shlex.quote(" ".join(command.path))}) options="{options}"; flags="{flags}"; words="{words}" ;;'


def _bash_values(command: Command) -> Iterator[str]:
    for name, words in command.options.items():
        if words:
            yield f'      {shlex.quote(" ".join(command.path) + "|" + name)}) words="{" ".join(words)}" ;;'


def _fish(found: list[Command]) -> str:
    lines = ["# Completion of interp for fish: interp completion fish | source", "complete -c interp -e"]
    for command in found:
        where = _fish_condition(command, found)
        for word in [*command.commands, *command.arguments]:
            lines.append(f"complete -c interp -n {where} -a {shlex.quote(word)}")
        for name, words in command.options.items():
            kind = f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}"
            takes = "" if words is None else f" -r{' -f -a ' + shlex.quote(' '.join(words)) if words else ''}"
            lines.append(f"complete -c interp -n {where} {kind}{takes}")
    return "\n".join(lines) + "\n"


def _fish_condition(command: Command, found: list[Command]) -> str:
    """When the words typed so far mean this command."""
    tests = [f"__fish_seen_subcommand_from {word}" for word in command.path]
    others = " ".join(command.commands)
    tests += [f"not __fish_seen_subcommand_from {others}"] if others else []
    return shlex.quote("; and ".join(tests) or "true")
