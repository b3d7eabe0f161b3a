"""The Space of this metric: its description, and two fields to try it.

Needs gradio 4 or newer, because the widget of `evaluate` needs gradio 3.
"""

import json
from pathlib import Path

import evaluate
import gradio

FOLDER = Path(__file__).resolve().parent
metric = evaluate.load(str(FOLDER / "triplet_accuracy.py"))


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
            "[[[1, 0], [0.9, 0.1], [0, 1]], [[1, 0], [0.1, 0.9], [0.8, 0.2]]]",
            label="predictions: anchor, close and far, (triplets, 3, dim)",
            lines=3,
        ),
        gradio.Textbox('["heel", "closure"]', label="references: the condition of each triplet"),
    ],
    outputs=gradio.JSON(label="fractions"),
    title="Triplet accuracy",
    description=metric.description,
    article=(FOLDER / "README.md").read_text(encoding="utf-8").split("---\n", 2)[2],
)

if __name__ == "__main__":
    interface.launch()
