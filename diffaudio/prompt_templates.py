"""Prompt templates: sentences such as "the sound of {}" in which CLIP reads a text.

The embedding of a text is the mean of its embeddings in all templates, normalised to unit norm (prompt ensembling,
Radford et al. 2021, arXiv:2103.00020, section 3.1.4).
"""

from typing import Any

from diffaudio.errors import UserError

__all__ = ["PLAIN", "check_templates", "fill"]

PLAIN = ("{}",)  # templates that leave a text unchanged


def check_templates(templates: Any, where: str = "") -> tuple[str, ...]:
    """Prompt templates as a tuple.

    Args:
        where: prefix of the error message.

    Raises:
        UserError: not a list of sentences, an empty list, or a sentence that does not contain {} exactly once.
    """
    if not isinstance(templates, list | tuple) or not templates or not all(isinstance(t, str) for t in templates):
        raise UserError(f"{where}prompt templates are a list of one or more sentences, such as 'the sound of {{}}'")
    for template in templates:
        if template.count("{}") != 1:
            raise UserError(
                f"{where}prompt template '{template}' does not contain {{}} exactly once; it stands for the text"
            )
    return tuple(templates)


def fill(template: str, text: str) -> str:
    """The template with the text in place of {}; braces in the text have no special meaning."""
    before, _, after = template.partition("{}")
    return f"{before}{text}{after}"
