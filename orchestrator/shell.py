"""What a shell asks of the command line: a help that fits its width, and completion."""

from __future__ import annotations

import textwrap

WIDTH = 100
"""Columns of the help."""

COMPLETION = r"""_orchestrator() {
    local line="${COMP_LINE:0:COMP_POINT}" word choices
    word="${line##* }"
    case "$line" in
        *"-m orchestrator "*) line="${line#*-m }" ;;
        orchestrator" "*) ;;
        *) return ;;
    esac
    choices=$(COMP_LINE="$line" "${COMP_WORDS[0]}" $_orchestrator_module -sc query=bash 2>/dev/null)
    COMPREPLY=($(compgen -W "$choices" -- "$word"))
    # bash itself keeps what stands before the last =
    if [[ "$COMP_WORDBREAKS" == *=* && "$word" == *=* ]]; then
        COMPREPLY=("${COMPREPLY[@]#"${word%=*}="}")
    fi
}
_orchestrator_python() {
    local _orchestrator_module="-m orchestrator"
    _orchestrator
}
complete -o nospace -o default -F _orchestrator orchestrator
complete -o nospace -o default -F _orchestrator_python python python3
"""
"""For bash. Hydra's own script does not know `python -m`; its answers are used."""


def asks_for_help(words: list[str]) -> bool:
    return "--help" in words or "-h" in words


def asks_for_completion(words: list[str]) -> bool:
    """Whether this is `-sc install=bash`; other shells and questions are Hydra's."""
    return words in (["-sc", "install=bash"], ["--shell-completion", "install=bash"])


def fitted_help(text: str) -> str:
    """The help with lists of choices broken at `WIDTH` columns."""
    lines = []
    for line in text.splitlines():
        lines += textwrap.wrap(line, WIDTH, subsequent_indent="    ", drop_whitespace=True) or [""]
    return "\n".join(lines).rstrip() + "\n"
