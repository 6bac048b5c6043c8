"""What a LEVI model and a training run are: three dataclasses, validated, from TOML and to it.

Knows no torch: a wrong setting is refused before anything heavy is imported.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import textwrap
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, get_args, get_origin, get_type_hints

from levi_serving.errors import UsageError

__all__ = ["BRANCHES", "Config", "DataConfig", "ModelConfig", "Pooling", "TaskChoice", "TrainingConfig"]

T = TypeVar("T")

BRANCH_GROUP = "levi_deploy.branches"
"""The entry points that add branches by name."""

Pooling = Literal["ladder", "tokens", "attention", "mean", "first", "last"]
FIXED_POOLINGS = ("mean", "first", "last")
"""The poolings that have nothing to learn."""
BRANCHES = {
    "mlp": ("text",),
    "cnn": ("text", "image"),
    "gru": ("text",),
    "transformer": ("text",),
    "tabular": ("numeric", "categorical"),
    "graph": ("nodes",),
}
"""The branches that are built in, and which of a row's columns each can read."""

TaskChoice = Literal["auto", "classification", "multilabel", "regression"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A LEVI model (letters as in the README: K adapting layers, M stages, S branch width).

    Attributes:
        backbone: a model's hub id or folder, for ``transformers.AutoModel``.
        taps: the depths that are read, 0 (embeddings) … L: a list, a number K to spread evenly over
            1 … L including the last layer, or ``all`` (0 … L). An empty list is the branch alone.
        pooling: how a tap's tokens become one vector: ``ladder`` climbs the taps with a narrow transformer block
            each, ``tokens`` maps each token before pooling, ``attention`` learns queries; ``mean``, ``first`` and
            ``last`` are fixed.
        queries: learned queries of each tap, for all poolings but the fixed ones.
        side_width: width of the tokens that ``ladder`` and ``tokens`` make, a multiple of 4.
        side_dropout: share of them dropped in training.
        branches: the small models trained from scratch, by name or import string; an empty list leaves
            them out; when not set, one that fits each input of the rows.
        branch_width: S, the width of a stage of one branch.
        branch_depth: M, the number of stages; the branch's own choice when not set.
        branch_embedding: width of a branch's own embeddings.
        branch_dropout: share of a branch stage dropped in training.
        fusion: ``layers`` lets each adapting layer read its tap beside a branch stage; ``outputs`` gives taps linear
            heads that read no branch, and the branches a head of their own, so that only outputs are averaged.
        head_hidden: hidden units of an adapting layer; 0 makes it linear.
        head_dropout: share of an adapting layer's inputs dropped in training.
        members: how many times all that trains from scratch is there, each from weights of its own and all averaged
            over one pass of the backbone: more training and more of the graph, for a steadier answer.
        average: ``equal`` gives each head the same weight, as the paper does; ``weighed`` fits the weights on ID
            validation, held towards equal.
        average_of: what of the heads is averaged: ``logits`` or ``probabilities``.
        lora: rank of the adapters that train in the backbone together with the rest; 0 for none. Taps then
            change with every step, so they are not stored.
        max_length: the most tokens of a row.
        image_size: height and width of an image in pixels; the backbone's own when not set.
    """

    backbone: str = "sentence-transformers/all-MiniLM-L6-v2"
    taps: tuple[int, ...] | int | Literal["all"] = 3
    pooling: Pooling = "ladder"
    queries: int = 4
    side_width: int = 96
    side_dropout: float = 0.2
    branches: tuple[str, ...] | None = None
    branch_width: int = 64
    branch_depth: int | None = None
    branch_embedding: int = 64
    branch_dropout: float = 0.3
    fusion: Literal["layers", "outputs"] = "layers"
    head_hidden: int = 128
    head_dropout: float = 0.1
    members: int = 1
    average: Literal["weighed", "equal"] = "equal"
    average_of: Literal["logits", "probabilities"] = "logits"
    lora: int = 0
    max_length: int = 256
    image_size: int | None = None

    def __post_init__(self) -> None:
        _positive(
            self,
            "queries",
            "side_width",
            "branch_width",
            "branch_depth",
            "branch_embedding",
            "members",
            "max_length",
            "image_size",
        )
        _share(self, "side_dropout", "branch_dropout", "head_dropout")
        if self.side_width % 4:
            raise UsageError(f"`side_width` is {self.side_width}; expected a multiple of 4, the heads of a block.")
        for name in self.branches or ():
            if name not in BRANCHES and ":" not in name and not metadata.entry_points(group=BRANCH_GROUP, name=name):
                raise UsageError(
                    f"`branches` has {name!r}; expected {', '.join(BRANCHES)}, or an import string as "
                    "package.module:Class."
                )
        if self.lora < 0 or (self.lora and self.taps == ()):
            raise UsageError(f"`lora` is {self.lora}; expected a rank from 1, with taps to train for, or 0 for none.")
        if self.head_hidden < 0:
            raise UsageError(f"`head_hidden` is {self.head_hidden}; expected 0 (linear) or more.")
        if isinstance(self.taps, int) and self.taps < 1:
            raise UsageError(f"`taps` is {self.taps}; expected a number of taps from 1, a list of depths, or 'all'.")
        if isinstance(self.taps, tuple):
            if list(self.taps) != sorted(set(self.taps)) or any(tap < 0 for tap in self.taps):
                raise UsageError(
                    f"`taps` are {list(self.taps)}; expected different depths from 0 upwards, in rising order."
                )
            if not self.taps and self.branches == ():
                raise UsageError(
                    "There are no taps and no branch, so nothing reads the input. Give `taps` or `branches`."
                )

    def depths(self, depth: int) -> tuple[int, ...]:
        """The taps as depths t_1 < … < t_K of a backbone with ``depth`` = L layers.

        Raises:
            UsageError: a tap lies outside 0 … L, or there are fewer layers than taps.
        """
        if self.taps == "all":
            return tuple(range(depth + 1))
        if isinstance(self.taps, int):
            if self.taps > depth:
                raise UsageError(
                    f"`taps` is a number of {self.taps} depths, but {self.backbone} has {depth} layers. "
                    f"Give at most {depth}, or 'all' to read the embeddings too."
                )
            return tuple(round((k + 1) * depth / self.taps) for k in range(self.taps))
        if self.taps and self.taps[-1] > depth:
            raise UsageError(
                f"Tap {self.taps[-1]} is out of range: {self.backbone} has {depth} layers, "
                f"so taps go from 0 (embeddings) to {depth}."
            )
        return self.taps


TrainingDevice = Literal["auto", "cpu", "cuda", "mps"]


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a LEVI model is trained.

    Attributes:
        epochs: the most passes over the training rows.
        batch_size: rows in a step.
        learning_rate: AdamW's peak learning rate.
        weight_decay: AdamW's weight decay, on matrices only.
        ema_decay: keep an exponential average of the weights that train, and validate and keep that one: the share of
            the average that stays in each step, after a warm-up; 0 for the weights themselves.
        fine_tune: epochs in which the whole backbone is trained first, with a linear head, and then frozen; 0
            for none.
        fine_tune_rate: AdamW's peak learning rate in the epochs of ``fine_tune``.
        train_backbone: train the whole backbone with everything else, for all epochs and at ``learning_rate``, which
            should then be as low as ``fine_tune_rate``: full fine-tuning. Its taps are not stored.
        patience: epochs without a better validation loss before training stops.
        head_weights: the weights w_1 … w_K in the loss, one for each tap's head, the same in all members; equal when
            empty.
        class_weights: ``balanced`` weighs each class by the inverse of its share of the training rows;
            ``none`` weighs all rows the same.
        augment: ``flip-crop`` shows image branches a mirrored and shifted image at random; ``none`` does not.
            The backbone always sees the image as it is, so its stored taps stay valid.
        calibrate: divide the average's logits by one temperature, fitted on ID validation; regression has none.
        abstain_share: share of ID validation rows on which the model abstains: those with the most doubt, by the
            signal that ranks errors best there. Signal and threshold are kept with the model; 0 for never.
        select: choose form of adapting layer, taps, branch, weights of the heads and epochs by what holds up on
            training rows that are held out together: a domain of ``domain``, else a cluster in each class.
        select_trainings: the most trainings that the choice may take.
        device: where training computes: ``auto`` is a GPU where torch has one (``cuda``, else ``mps``), else ``cpu``.
            On CUDA the backbone's passes over training rows are in bfloat16, all else in float32.
        seed: of every random choice.
    """

    epochs: int = 10
    batch_size: int = 64
    learning_rate: float = 3e-4
    weight_decay: float = 0.01
    ema_decay: float = 0.995
    fine_tune: int = 0
    fine_tune_rate: float = 2e-5
    train_backbone: bool = False
    patience: int = 3
    head_weights: tuple[float, ...] = ()
    class_weights: Literal["none", "balanced"] = "none"
    augment: Literal["none", "flip-crop"] = "flip-crop"
    calibrate: bool = True
    abstain_share: float = 0.05
    select: bool = False
    select_trainings: int = 24
    device: TrainingDevice = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        _positive(self, "epochs", "batch_size", "learning_rate", "fine_tune_rate", "patience", "select_trainings")
        _share(self, "abstain_share", "ema_decay")
        if self.fine_tune < 0:
            raise UsageError(f"`fine_tune` is {self.fine_tune}; expected epochs from 1, or 0 for none.")
        if self.weight_decay < 0:
            raise UsageError(f"`weight_decay` is {self.weight_decay}; expected 0 or more.")
        if any(weight < 0 for weight in self.head_weights) or (self.head_weights and not any(self.head_weights)):
            raise UsageError(f"`head_weights` are {list(self.head_weights)}; expected numbers from 0, not all 0.")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which columns and rows of a table are learned from.

    Attributes:
        text: the column with the text; ``text`` when neither a text nor an image is named.
        text_pair: the column with the second text of a pair.
        image: the column with the image: a file's bytes, or its path relative to the table.
        numeric: columns of numbers, for a ``tabular`` branch.
        categorical: columns of names, for a ``tabular`` branch.
        nodes: two id columns, as a user and an item, for a ``graph`` branch.
        edges: a table with those two columns, a row an edge; the training rows when not set.
        target: the column with the answer.
        task: what kind of answer: ``classification``, ``multilabel`` (labels joined by ``|``) or
            ``regression``; ``auto`` decides by the values.
        split_column: the column that says which rows are for training and which for validation.
        train_split: its value on training rows.
        validation_split: its value on in-distribution validation rows; when not set, the first that occurs of
            ``id_val``, ``validation``, ``val``, ``valid`` and ``dev``.
        domain: a column that names the domain of each training row, for ``select``.
    """

    text: str | None = None
    text_pair: str | None = None
    image: str | None = None
    numeric: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    edges: str | None = None
    target: str = "label"
    task: TaskChoice = "auto"
    split_column: str | None = None
    train_split: str = "train"
    validation_split: str | None = None
    domain: str | None = None

    def __post_init__(self) -> None:
        if self.text is None and self.image is None:
            object.__setattr__(self, "text", "text")
        if self.text_pair is not None and self.text is None:
            raise UsageError(f"`text_pair` is {self.text_pair!r}, but there is no first text. Give `text` too.")
        if self.nodes and len(self.nodes) != 2:
            raise UsageError(f"`nodes` are {list(self.nodes)}; expected two columns, as a user's and an item's id.")
        if self.edges is not None and not self.nodes:
            raise UsageError("`edges` are given, but no node columns. Give `nodes` too, as a user's and an item's id.")
        if self.target in self.inputs:
            raise UsageError(f"The column {self.target!r} is the target, so it cannot be an input as well.")

    @property
    def inputs(self) -> tuple[str, ...]:
        """The columns a row is read from, each once."""
        alone = [name for name in (self.text, self.text_pair, self.image) if name is not None]
        return tuple(dict.fromkeys([*alone, *self.numeric, *self.categorical, *self.nodes]))


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole training run: ``[model]``, ``[training]`` and ``[data]`` of a TOML file."""

    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    data: DataConfig = field(default_factory=DataConfig)

    def __post_init__(self) -> None:
        if self.training.fine_tune and self.model.lora:
            raise UsageError(
                f"`fine_tune` is {self.training.fine_tune} and `lora` is {self.model.lora}: the one trains the whole "
                "backbone, the other adapters in a frozen one. Give one of them."
            )
        if self.training.train_backbone and (self.training.fine_tune or self.model.lora):
            other = "fine_tune" if self.training.fine_tune else "lora"
            raise UsageError(
                f"`train_backbone` and `{other}` are both given: they are different ways to train the backbone. "
                "Give one of them."
            )
        if (self.training.fine_tune or self.training.train_backbone) and self.model.taps == ():
            setting = "fine_tune" if self.training.fine_tune else "train_backbone"
            raise UsageError(
                f"`{setting}` is given, but there are no taps, so nothing reads the backbone. Give `taps`, or leave "
                f"`{setting}` out."
            )
        if self.training.select and (self.training.train_backbone or self.model.lora or self.model.taps == ()):
            raise UsageError(
                "`select` is set, but it compares models on a frozen backbone's stored taps, and there are none with "
                "`train_backbone`, `lora` or without taps. Leave one of them out."
            )
        for name in self.model.branches or ():
            reads = BRANCHES.get(name)
            if reads is not None and not any(getattr(self.data, column) for column in reads):
                columns = " or ".join(f"`{column}`" for column in reads)
                raise UsageError(f"The branch {name!r} does not fit: it reads what {columns} names, and none is given.")

    @classmethod
    def read(cls, path: Path | None, **settings: Mapping[str, Any]) -> Self:
        """Put a configuration together: the settings given override the file's, and these the defaults.

        Args:
            path: a TOML file, or None.
            settings: by section; those that are None are not given.

        Raises:
            UsageError: which setting is wrong, what was found, what was expected.
        """
        file: dict[str, Any] = {}
        if path is not None:
            try:
                file = tomllib.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise UsageError(f"{path} is no readable TOML file: {error}.") from error
        for name, section in (*file.items(), *settings.items()):
            if name not in _SECTIONS or not isinstance(section, Mapping):
                expected = ", ".join(f"[{known}]" for known in _SECTIONS)
                raise UsageError(f"{name!r} is no section of a configuration; expected {expected}.")
        sections = {}
        for name, kind in _SECTIONS.items():
            given = {key: value for key, value in settings.get(name, {}).items() if value is not None}
            sections[name] = _build(name, kind, {**file.get(name, {}), **given})
        return cls(**sections)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Self:
        """Rebuild one from ``to_dict``."""
        return cls.read(None, **document)

    def to_dict(self) -> dict[str, Any]:
        """As plain dictionaries, for JSON."""
        return dataclasses.asdict(self)

    def to_toml(self) -> str:
        """As a TOML file that ``read`` takes: every setting with its value, below a comment that says what it is.

        A setting without a value stands there commented out.
        """
        lines = ["# Every setting of a training run: levi train DATA -o RUN --config FILE"]
        for section, kind in _SECTIONS.items():
            lines += ["", f"[{section}]"]
            for name, description in _descriptions(kind).items():
                value = getattr(getattr(self, section), name)
                lines += ["", *textwrap.wrap(description, 100, initial_indent="# ", subsequent_indent="# ")]
                lines.append(f"# {name} =" if value is None else f"{name} = {json.dumps(value, ensure_ascii=False)}")
        return "\n".join(lines) + "\n"


_SECTIONS: dict[str, Any] = {"model": ModelConfig, "training": TrainingConfig, "data": DataConfig}


def _descriptions(kind: type) -> dict[str, str]:
    """Each setting's description in the docstring of its dataclass, in one line."""
    _, *parts = re.split(r"^    (\w+): ", inspect.getdoc(kind) or "", flags=re.MULTILINE)
    texts = (" ".join(part.replace("``", '"').split()) for part in parts[1::2])
    return {name: text[0].upper() + text[1:] for name, text in zip(parts[::2], texts, strict=True)}


def _build(section: str, kind: type[T], values: Mapping[str, Any]) -> T:
    """Make a dataclass from loose values, naming what does not fit."""
    hints = get_type_hints(kind)
    for name in values:
        if name not in hints:
            raise UsageError(f"[{section}] has no setting {name!r}; expected {', '.join(hints)}.")
    return kind(**{name: _coerce(name, value, hints[name]) for name, value in values.items()})


def _coerce(name: str, value: Any, hint: Any) -> Any:
    """Check one value against its type; lists become tuples, whole numbers may stand for floats."""
    options = get_args(hint) if get_origin(hint) not in (tuple, Literal) and get_args(hint) else (hint,)
    for option in options:
        if get_origin(option) is Literal and value in get_args(option) and isinstance(value, str):
            return value
        if get_origin(option) is tuple and isinstance(value, list | tuple):
            return tuple(_coerce(name, item, get_args(option)[0]) for item in value)
        if option is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if option in (bool, int, str) and type(value) is option:
            return value
        if option is type(None) and value is None:
            return value
    raise UsageError(f"`{name}` is {value!r}; expected {_in_words(options)}.")


def _in_words(options: tuple[Any, ...]) -> str:
    words = []
    for option in options:
        if get_origin(option) is Literal:
            words += [repr(choice) for choice in get_args(option)]
        elif get_origin(option) is tuple:
            words.append("a list")
        elif option is not type(None):
            words.append({bool: "true or false", int: "a whole number", float: "a number", str: "a text"}[option])
    return " or ".join(words)


def _positive(config: Any, *names: str) -> None:
    for name in names:
        if getattr(config, name) is not None and not getattr(config, name) > 0:
            raise UsageError(f"`{name}` is {getattr(config, name)}; expected more than 0.")


def _share(config: Any, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(config, name) < 1:
            raise UsageError(f"`{name}` is {getattr(config, name)}; expected from 0 to below 1.")
