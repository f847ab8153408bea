"""What runs/ablations.sh trains, and the table that it ends with: mean and spread over seeds of one retrieval task.

Variants are the recipe `emoji` with changes, as `flowtok train` takes them; the baseline that is told the text at every
step is text_as_condition.py's.

    python runs/ablations.py set DATA FOLDER --pictures N
    python runs/ablations.py names
    python runs/ablations.py changes VARIANT --updates N --seed N
    python runs/ablations.py table FOLDER [-o FILE]
    python runs/ablations.py publish FOLDER RESULTS     (docs/results; then flowtok eval --publish docs/results)
"""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from flowtok.errors import DataError, FlowTokError
from flowtok.evaluate.report import MEASURES, RECORDS_FILE, Record, read_measurement, read_records
from flowtok.files import write_file_atomically

# What all share: the flow alone is trained, on the tokens of the shipped model's image tokenizer and one caption a
# picture, with networks that are small enough to see each picture some hundred times in three minutes; source and
# projector are learned together with the velocity, as in the paper.
COMMON = (
    "tokenizer_training=null",
    "text_training=null",
    "captioner_training=null",
    "text_decoder=null",
    "flow_stage.reading=0",
    "flow_stage.time=uniform",
    "flow_stage.guidance_scale=1",
    "flow_stage.text_noise=0",
    "text_stage.noise_std=null",
    "captions_per_picture=1",
    "text_projector.noise_std=null",
    "text_projector.num_layers=1",
    "text_projector.hidden=128",
    "joint_stage.head_hidden=128",
    "velocity.depth=4",
    "velocity.width=128",
    "velocity.num_heads=2",
    "velocity.position_maps=false",
    "fresh=[velocity,text_projector,alignment_head]",
    "flow_training.batch_size=64",
    "flow_training.optimizer.learning_rate=2e-3",
    "flow_training.optimizer.warmup_steps=50",
    "flow_training.ema_decay=0.99",
    "flow_training.checkpoint_every=200",
    "flow_training.keep_checkpoints=1",
    "flow_training.preview_every=1000000",
)
BASELINE = "text as condition"
STYLE = "twemoji"
"""Of one style, or the style would give a picture away among others."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A row of the table.

    Attributes:
        words: What it is.
        changes: To the recipe, after COMMON.
    """

    words: str
    changes: tuple[str, ...]


def _aligned(target: str, loss: str, weight: float) -> tuple[str, ...]:
    joint = "joint_stage"
    return (
        f"{joint}.alignment_target={target}",
        f"{joint}.alignment_loss={loss}",
        f"{joint}.alignment_weight={weight}",
    )


def _settled(noise: float = 0.6) -> tuple[str, ...]:
    return (
        "joint_stage.projector=frozen",
        "joint_stage.alignment_weight=0",
        "joint_stage.kl_weight=0",
        f"text_projector.noise_std={noise}",
        "text_projector.num_layers=3",
        "text_projector.hidden=768",
        "fresh=[velocity]",
    )


VARIANTS = {
    "mlp-contrastive-1": Variant(
        words="MLP target, contrastive, weight 1 (the paper's choice)", changes=_aligned("mlp", "contrastive", 1.0)
    ),
    "pool-contrastive-1": Variant(words="average pool target", changes=_aligned("average_pool", "contrastive", 1.0)),
    "mlp-cosine-1": Variant(
        words="cosine loss with margin 0.5",
        changes=(*_aligned("mlp", "cosine", 1.0), "joint_stage.cosine_margin=0.5"),
    ),
    "mlp-contrastive-2": Variant(words="weight 2", changes=_aligned("mlp", "contrastive", 2.0)),
    "no-alignment": Variant(words="weight 0: no alignment", changes=_aligned("mlp", "contrastive", 0.0)),
    "settled": Variant(
        words="text tokens settled beforehand: the shipped model's projector, frozen, with noise 0.6",
        changes=_settled(),
    ),
    "settled-early": Variant(
        words="the same, with times near the text (`early`)", changes=(*_settled(), "joint_stage.time=early")
    ),
    "settled-early-quiet": Variant(
        words="the same, with noise 0.2", changes=(*_settled(noise=0.2), "joint_stage.time=early")
    ),
    "settled-early-quiet-maps": Variant(
        words="the same, with a map for each position: the way of the recipe `emoji`",
        changes=(*_settled(noise=0.2), "joint_stage.time=early", "velocity.position_maps=true"),
    ),
    "text-as-condition": Variant(
        words="baseline: noise as the source, text tokens concatenated as a condition",
        changes=_aligned("mlp", "contrastive", 0.0),
    ),
    "tokens-as-condition": Variant(
        words="the baseline, told the settled text tokens without their noise",
        changes=_aligned("mlp", "contrastive", 0.0),
    ),
    "noisy-tokens-as-condition": Variant(
        words="the baseline, told the settled text tokens with their noise 0.6",
        changes=_aligned("mlp", "contrastive", 0.0),
    ),
}
SHOWN = ("r_at_1", "r_at_5", "pixel_r_at_1", "pixel_r_at_5", "mean_rank")


def make_set(data: Path, folder: Path, pictures: int) -> Path:
    """A small set of the emoji set's pictures: the first of one style to train on, its unseen concepts beside them.

    The pictures themselves stay where they are.

    Raises:
        DataError: The emoji set is not there, or has not that many.
    """
    # Here, so that the names of the variants, which the script asks for again and again, come without torch.
    from flowtok.data.captioned import read_rows
    from flowtok.evaluate.retrieval import fixed_order

    own = [row for row in read_rows(data) if row.style == STYLE and not row.variant]
    train = [row for row in own if row.split == "train"]
    if len(train) < pictures:
        raise DataError(f"{data} has {len(train)} training pictures of {STYLE}, not {pictures}; ask for fewer")
    first = [train[place] for place in fixed_order([row.file_name for row in train])[:pictures]]
    rows = [*first, *(row for row in own if row.split == "unseen_concept")]
    folder.mkdir(parents=True, exist_ok=True)
    images = folder / "images"
    if not images.is_symlink():
        images.symlink_to((data / "images").resolve())
    lines = [json.dumps(asdict(row), ensure_ascii=False) for row in rows]
    return write_file_atomically(folder / "metadata.jsonl", "\n".join(lines) + "\n")


def changes(variant: str, updates: int, seed: int) -> list[str]:
    """All changes to the recipe `emoji` that make a variant."""
    length = (f"flow_training.num_steps={updates}", f"flow_training.seed={seed}")
    return [*COMMON, *VARIANTS[variant].changes, *length]


def table(folder: Path) -> str:
    """The table, as Markdown, of what lies in FOLDER/VARIANT/seed-N/scores.

    Raises:
        FlowTokError: There is nothing yet, or something was measured in another way than the rest.
    """
    found: dict[str, list[list[Record]]] = {}
    for name in VARIANTS:
        paths = sorted((folder / name).glob(f"seed-*/scores/{RECORDS_FILE}"))
        if paths:
            found[name] = [read_records(path) for path in paths]
    if not found:
        raise FlowTokError(f"there is no measurement in {folder}; start runs/ablations.sh")
    splits = list(dict.fromkeys(record.split for runs in found.values() for records in runs for record in records))
    parts = []
    for split in splits:
        rows = {
            name: [record for records in runs for record in records if record.split == split]
            for name, runs in found.items()
        }
        if len({record.protocol_sha256 for own in rows.values() for record in own}) != 1:
            raise FlowTokError(f"{folder}: not all was measured on {split} in the same way; measure it again")
        one = next(iter(rows.values()))[0]
        lines = [
            f"**{split.replace('_', ' ')}**, {one.num_samples:,} prompts, protocol `{one.protocol_sha256[:12]}`",
            "",
            f"| variant | seeds | {' | '.join(MEASURES[score].title for score in SHOWN)} |",
            f"| --- | ---: | {' | '.join('---:' for _ in SHOWN)} |",
        ]
        for name, own in rows.items():
            cells = [_spread([record.scores[score] for record in own]) for score in SHOWN]
            lines.append(f"| {VARIANTS[name].words} | {len(own)} | {' | '.join(cells)} |")
        chances = [one.scores.get(f"chance_{score.removeprefix('pixel_')}", math.nan) for score in SHOWN]
        lines.append(f"| by chance | | {' | '.join(f'{value:.1f}' for value in chances)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def publish(folder: Path, results: Path) -> Path:
    """Writes RESULTS/ablations.md with the table, and the records that it was made of beside it.

    Raises:
        FlowTokError: There is nothing yet, or something was measured in another way than the rest.
    """
    tables = table(folder)
    kept = results / "ablations" / "records"
    kept.mkdir(parents=True, exist_ok=True)
    occasions = []
    for path in sorted(folder.glob(f"*/seed-*/scores/{RECORDS_FILE}")):
        occasions.append(read_measurement(path)[1])
        seed = path.parents[1]
        write_file_atomically(kept / f"{seed.parent.name}-{seed.name}.json", path.read_bytes())
    dates = sorted(one.date for one in occasions)
    budget = (folder / "budget").read_text(encoding="utf-8").strip()
    words = [
        "## Ablations and the usual way, on the emoji set",
        "Small networks on a few pictures, one budget for all, several seeds: mean ± standard deviation over them. The "
        "first row is the paper's choice, the next ones each change one thing of it. It shows which way learns faster "
        "to lead the texts it is trained on to their pictures, and neither how good pictures get nor what "
        "is best after a long training. What is unequal all the same stands in "
        "[evaluation.md](../evaluation.md#ablations).",
        "\n".join(
            [
                f"- Command: `runs/ablations.sh {budget}`; 64 pairs an update",
                f"- Date: {dates[0]} to {dates[-1]}",
                f"- Hardware: {'; '.join(dict.fromkeys(one.hardware for one in occasions))}",
                "- Records with their whole protocols: [ablations/records](ablations/records)",
            ]
        ),
        tables.strip(),
    ]
    return write_file_atomically(results / "ablations.md", "\n\n".join(words) + "\n")


def _spread(values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds, the latter of two values or more."""
    mean = f"{statistics.fmean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    small = commands.add_parser("set")
    small.add_argument("data", type=Path)
    small.add_argument("folder", type=Path)
    small.add_argument("--pictures", type=int, required=True)
    commands.add_parser("names")
    one = commands.add_parser("changes")
    one.add_argument("variant", choices=list(VARIANTS))
    one.add_argument("--updates", type=int, required=True)
    one.add_argument("--seed", type=int, required=True)
    shown = commands.add_parser("table")
    shown.add_argument("folder", type=Path)
    shown.add_argument("-o", "--output", type=Path)
    given_away = commands.add_parser("publish")
    given_away.add_argument("folder", type=Path)
    given_away.add_argument("results", type=Path)
    given = parser.parse_args(arguments)
    if given.command == "names":
        print("\n".join(VARIANTS))
    elif given.command == "changes":
        print("\n".join(changes(given.variant, given.updates, given.seed)))
    else:
        try:
            if given.command == "set":
                print(make_set(given.data, given.folder, given.pictures))
                return
            if given.command == "publish":
                print(publish(given.folder, given.results))
                return
            text = table(given.folder)
            if given.output is not None:
                write_file_atomically(given.output, text)
        except FlowTokError as error:
            sys.exit(str(error))
        print(text, end="")


if __name__ == "__main__":
    main()
