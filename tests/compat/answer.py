"""Run by the environment of other tools: opens a bundle in optimum-onnx, knows nothing of levi-deploy.

    python answer.py BUNDLE text|image < rows.json > answers.json

Rows are texts, pairs of them, or paths of images. Answers are each row's probability of each label by name, from
``transformers.pipeline`` one row at a time and four at a time.
"""

from __future__ import annotations

import json
import sys

from optimum.onnxruntime import ORTModelForImageClassification, ORTModelForSequenceClassification
from transformers import AutoImageProcessor, AutoTokenizer, pipeline


def main() -> None:
    bundle, kind = sys.argv[1:]
    rows = json.load(sys.stdin)
    if kind == "text":
        model = ORTModelForSequenceClassification.from_pretrained(bundle)
        tokenizer = AutoTokenizer.from_pretrained(bundle)
        ask = pipeline("text-classification", model=model, tokenizer=tokenizer, truncation=True, top_k=None)
        rows = [{"text": row[0], "text_pair": row[1]} if isinstance(row, list) else row for row in rows]
    else:
        model = ORTModelForImageClassification.from_pretrained(bundle)
        processor = AutoImageProcessor.from_pretrained(bundle, use_fast=False)
        ask = pipeline("image-classification", model=model, image_processor=processor)
    answers = {"alone": [ask([row])[0] for row in rows], "together": ask(rows, batch_size=4)}
    found = {way: [{one["label"]: one["score"] for one in row} for row in given] for way, given in answers.items()}
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
