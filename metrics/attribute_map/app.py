"""The Space of this metric: its description, and two fields to try it.

Needs gradio 4 or newer, because the widget of `evaluate` needs gradio 3.
"""

import json
from pathlib import Path

import evaluate
import gradio

FOLDER = Path(__file__).resolve().parent
metric = evaluate.load(str(FOLDER / "attribute_map.py"))


def compute(predictions: str, references: str) -> dict[str, float]:
    """Both arguments are JSON."""
    try:
        return metric.compute(predictions=json.loads(predictions), references=json.loads(references))
    except ValueError as error:
        raise gradio.Error(str(error)) from error


interface = gradio.Interface(
    fn=compute,
    inputs=[
        gradio.Textbox(
            "[[[1, 0]], [[0.9, 0.1]], [[0, 1]], [[0.2, 0.9]]]",
            label="predictions: embeddings, (images, attributes, dim)",
            lines=3,
        ),
        gradio.Textbox("[[0], [0], [1], [1]]", label="references: value ids, (images, attributes), -1 = not labelled"),
    ],
    outputs=gradio.JSON(label="fractions"),
    title="Attribute mAP",
    description=metric.description,
    article=(FOLDER / "README.md").read_text(encoding="utf-8").split("---\n", 2)[2],
)

if __name__ == "__main__":
    interface.launch()
