"""Wrong, damaged or random weights must never be used in silence: each way to be wrong has its one-line message."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import flowtok
from flowtok.checkpoints import catalogue, store
from flowtok.errors import CheckpointError, FlowTokError


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetConfig:
    width: int = 4


class Net(nn.Module):
    """A network with a parameter of each kind that real ones have: matrix, bias, stored table, counter."""

    table: Tensor

    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        self.first = nn.Linear(3, config.width)
        self.second = nn.Linear(config.width, 2, bias=False)
        self.register_buffer("table", torch.linspace(0, 1, config.width))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x) * self.table)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small, complete model folder."""
    path = tmp_path / "small"
    store.save_component(path, "velocity", Net(NetConfig()).state_dict())
    (path / "text_encoder").mkdir()
    (path / "text_encoder" / "config.json").write_text("{}")
    store.write_config(
        path, name="small", parts={"velocity": NetConfig(), "sampling": {"steps": 5}}, provenance={"licence": "none"}
    )
    store.write_card(path, "# small\n")
    return path


def one_line(error: pytest.ExceptionInfo[CheckpointError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


# weights


def test_component_comes_back_bit_for_bit(folder: Path) -> None:
    """Otherwise a saved model gives other pictures than the one that was trained."""
    net = Net(NetConfig())
    store.save_component(folder, "velocity", net.state_dict())
    again = store.load_component(folder, "velocity", lambda: Net(NetConfig()))
    assert not again.training
    for key, tensor in net.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[key]) and tensor.dtype == again.state_dict()[key].dtype
    x = torch.randn(2, 3)
    assert torch.equal(net(x), again(x))


def test_loading_takes_no_second_copy(folder: Path) -> None:
    """Otherwise a 4 GB model needs 8 GB: the parameters must be the mapped file itself."""
    state = store.load_state(folder / "velocity.safetensors")
    net = store.load_into(store.build(lambda: Net(NetConfig())), state, what="velocity")
    assert net.first.weight.data_ptr() == state["first.weight"].data_ptr()
    assert net.first.weight.requires_grad


def test_half_precision_file_is_half_the_size_and_loads_in_the_networks_own_type(tmp_path: Path) -> None:
    state = {"weight": torch.randn(64, 64)}
    full = store.save_component(tmp_path, "full", state).stat().st_size
    half = store.save_component(tmp_path, "half", state, torch.float16)
    assert half.stat().st_size < 0.6 * full
    net = store.load_into(store.build(lambda: nn.Linear(64, 64, bias=False)), store.load_state(half), what="half")
    assert net.weight.dtype == torch.float32
    assert torch.equal(net.weight, state["weight"].half().float())


def test_asked_for_type_holds_for_parameters_but_not_for_tables(folder: Path) -> None:
    """Rotary and position tables in bfloat16 would move every picture."""
    net = store.load_component(folder, "velocity", lambda: Net(NetConfig()), dtype=torch.bfloat16)
    assert net.first.weight.dtype == torch.bfloat16
    assert net.table.dtype == torch.float32


def test_live_module_keeps_its_parameters(folder: Path) -> None:
    """An optimizer holds on to parameters: a resumed run must not train copies that nobody reads."""
    net = Net(NetConfig())
    before = net.first.weight
    state = store.load_state(folder / "velocity.safetensors")
    store.load_into(net, state, what="velocity")
    assert net.first.weight is before
    assert torch.equal(before, state["first.weight"])


def test_views_and_tied_weights_can_be_saved(tmp_path: Path) -> None:
    big = torch.randn(10, 10)
    state = {"row": big[3], "turned": big.t(), "a": big, "b": big}
    again = store.load_state(store.save_component(tmp_path, "net", state))
    assert all(torch.equal(again[key], tensor) for key, tensor in state.items())
    assert (tmp_path / "net.safetensors").stat().st_size < 3 * big.nbytes + 1000


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_nan_and_infinite_weights_are_refused(folder: Path, bad: float, dtype: torch.dtype) -> None:
    """A diverged run must neither be saved as a model nor be used as one."""
    state = {key: tensor.clone() for key, tensor in Net(NetConfig()).state_dict().items()}
    state["second.weight"][1, 2] = bad
    with pytest.raises(CheckpointError, match="NaN or infinite") as error:
        store.load_into(
            Net(NetConfig()),
            {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()},
            what="velocity",
        )
    assert "second.weight" in one_line(error)
    before = (folder / "velocity.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match=r"second\.weight"):
        store.save_component(folder, "velocity", state, dtype)
    assert (folder / "velocity.safetensors").read_bytes() == before


def test_weights_too_large_for_the_asked_type_are_refused(tmp_path: Path) -> None:
    """70000 is infinite in float16: a compact file must not hold a broken network."""
    with pytest.raises(CheckpointError, match="float16"):
        store.save_component(tmp_path, "net", {"weight": torch.full((2,), 70000.0)}, torch.float16)
    assert not (tmp_path / "net.safetensors").exists()


@pytest.mark.parametrize("meta", [True, False])
def test_wrong_names_shapes_and_kinds_are_refused_with_the_first_names(meta: bool) -> None:
    good = Net(NetConfig()).state_dict()

    def load(state: dict[str, Tensor]) -> str:
        net = store.build(lambda: Net(NetConfig())) if meta else Net(NetConfig())
        before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
        with pytest.raises(CheckpointError) as error:
            store.load_into(net, state, what="velocity of 'x'")
        if not meta:
            assert all(torch.equal(before[key], tensor) for key, tensor in net.state_dict().items())
        return one_line(error)

    missing = load({key: tensor for key, tensor in good.items() if not key.startswith("first")})
    assert missing.startswith("velocity of 'x'")
    assert "2 of 5 weights are missing (first.weight, first.bias)" in missing
    extra = load({**good, **{f"blocks.{i}": torch.zeros(1) for i in range(9)}})
    assert "9 are unknown (blocks.0, blocks.1, blocks.2, ...)" in extra
    other = load(Net(NetConfig(width=5)).state_dict())
    assert "first.weight is (5, 3), the network has (4, 3)" in other
    assert "count is torch.float32, the network has torch.int64" in load({**good, "count": torch.tensor(1.0)})
    assert "5 of 5 weights are missing" in load({})


def test_a_file_that_is_not_a_checkpoint_is_refused(folder: Path, tmp_path: Path) -> None:
    path = folder / "velocity.safetensors"
    whole = path.read_bytes()
    damaged = {
        "empty": b"",
        "truncated in the header": whole[:20],
        "truncated in the weights": whole[:-5],
        "too long": whole + b"x",
        "text": b"not a checkpoint at all, but long enough to look like one",
        "huge header": b"\xff" * 64,
        "a pickle": b"\x80\x02cposix\nsystem\nX\x06\x00\x00\x00exit 1\x85R.",
    }
    for name, content in damaged.items():
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="truncated or not a safetensors file") as error:
            store.load_state(path)
        assert str(path) in one_line(error), name
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n")
    with pytest.raises(CheckpointError, match="git lfs pull"):
        store.load_state(path)
    with pytest.raises(CheckpointError, match="no weight file"):
        store.load_state(tmp_path / "nothing.safetensors")


def test_missing_component_is_named_with_the_way_to_get_it(folder: Path) -> None:
    """Random weights in its place would draw noise and call it a picture."""
    with pytest.raises(CheckpointError, match=r"no text_decoder\.safetensors.*flowtok import.*flowtok train"):
        store.load_component(folder, "text_decoder", lambda: Net(NetConfig()))
    with pytest.raises(CheckpointError, match=r"text_encoder/model\.safetensors"):
        store.text_encoder_folder(folder)


def test_table_that_no_file_fills_is_not_left_empty(folder: Path) -> None:
    """A buffer on the meta device has no values: the network would fail long after loading."""

    class Forgetful(Net):
        def __init__(self, config: NetConfig) -> None:
            super().__init__(config)
            self.register_buffer("lost", torch.ones(2), persistent=False)

    with pytest.raises(AssertionError, match="lost"):
        store.load_component(folder, "velocity", lambda: Forgetful(NetConfig()))


# config.json and checksums


def test_config_round_trip(folder: Path) -> None:
    config = store.read_config(folder)
    assert (config.name, config.sampling, config.provenance) == ("small", {"steps": 5}, {"licence": "none"})
    assert config.flowtok_version == flowtok.__version__
    assert config.part("velocity", NetConfig) == NetConfig()
    assert set(config.files) == {"velocity.safetensors", "text_encoder/config.json"}
    store.verify_checksums(folder)


def test_part_that_is_absent_or_from_another_version_is_refused(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"'small' has no text_decoder.*velocity, sampling"):
        store.read_config(folder).part("text_decoder", NetConfig)
    store.write_config(folder, name="small", parts={"velocity": {"widht": 4}})
    with pytest.raises(CheckpointError, match=r"velocity.*'widht'.*did you mean width\?"):
        store.read_config(folder).part("velocity", NetConfig)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ('{"format_version": 1, "name": "a"', "not valid JSON"),
        ('{"model_type": "bert"}', "no format_version"),
        ("[1]", "no format_version"),
        ('{"format_version": 99, "name": "a"}', "update flowtok"),
        ('{"format_version": 1}', "needs name"),
        ('{"format_version": 1, "name": "a", "velocty": {}}', "did you mean velocity"),
        ('{"format_version": 1, "name": "a", "files": {"x": {"bytes": 1}}}', "needs sha256"),
        ('{"format_version": 1, "name": "a", "name": "b"}', "twice"),
    ],
)
def test_damaged_config_is_refused(folder: Path, text: str, message: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=message) as error:
        store.read_config(folder)
    assert "config.json" in one_line(error)


def test_every_changed_byte_is_noticed_and_the_file_named(folder: Path) -> None:
    path = folder / "velocity.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"velocity\.safetensors is damaged: its SHA-256"):
        store.verify_checksums(folder)
    store.verify_checksums(folder, ["text_encoder/config.json"])
    path.write_bytes(whole[:-1])
    with pytest.raises(CheckpointError, match=rf"velocity\.safetensors is damaged: {len(whole) - 1} bytes"):
        store.verify_checksums(folder)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"has no velocity\.safetensors"):
        store.verify_checksums(folder)
    with pytest.raises(CheckpointError, match=r"no checksum of other\.safetensors"):
        store.verify_checksums(folder, ["other.safetensors"])


def test_model_card_may_be_edited(folder: Path) -> None:
    store.write_config(folder, name="small", parts={})
    store.write_card(folder, "# small, with more words\n")
    store.verify_checksums(folder)


# names, folders, the Hub


def test_shipped_name_folder_and_path_resolve(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(catalogue, "shipped_folder", lambda: folder.parent)
    assert store.list_models() == ["small"]
    monkeypatch.chdir(tmp_path)
    assert store.resolve("small") == folder
    assert store.resolve(folder) == folder
    assert store.resolve(str(folder)) == folder
    with pytest.raises(CheckpointError, match="only for models on the Hub"):
        store.resolve("small", revision="main")


def test_unknown_names_are_answered_with_the_nearest(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(catalogue, "shipped_folder", lambda: folder.parent)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"unknown model 'smal'.*did you mean small\?") as error:
        store.resolve("smal")
    one_line(error)
    with pytest.raises(CheckpointError, match=r"known: small"):
        store.resolve("zzz")
    (tmp_path / "runs").mkdir()
    for name in ("runs/nothing", "/no/such/folder", "a/b/c", "", ".."):
        # Not "the Hub did not give it": a misspelt folder must not wait for a network.
        with pytest.raises(CheckpointError, match="unknown model|no flowtok model") as error:
            store.resolve(name)
        assert "the Hub did not" not in one_line(error)
    with pytest.raises(CheckpointError, match=r"no flowtok model: it has no config\.json"):
        store.resolve("runs")
    with pytest.raises(CheckpointError, match="is a file"):
        store.resolve(folder / "velocity.safetensors")


def test_hub_id_is_fetched_with_revision_and_token(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked = []

    def snapshot_download(repo_id: str, **options: object) -> str:
        asked.append((repo_id, options["revision"], options["token"]))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert store.resolve("someone/model", revision="v1", token="secret") == folder
    assert asked == [("someone/model", "v1", "secret")]


def test_hub_failure_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a network the Hub's client answers in many lines."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"no folder no-such-owner/no-such-model, and the Hub") as error:
        store.resolve("no-such-owner/no-such-model")
    one_line(error)


# files


def test_a_crash_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    store.write_file_atomically(path, b"old")

    def crash(file) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.write_file_atomically(path, crash)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["weights.bin"]
    store.write_file_atomically(path, "new, with ümlaut")
    assert path.read_text(encoding="utf-8") == "new, with ümlaut"


def test_file_permissions_are_the_users(tmp_path: Path) -> None:
    """A model written for others to read must not be private because of how it was written."""
    path = tmp_path / "a"
    mask = os.umask(0o022)
    try:
        store.write_file_atomically(path, b"x")
    finally:
        os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o644
    path.chmod(0o600)
    store.write_file_atomically(path, b"y")
    assert path.stat().st_mode & 0o777 == 0o600


def test_unwritable_places_are_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(FlowTokError, match="there is no folder"):
        store.write_file_atomically(tmp_path / "no" / "file", b"")
    with pytest.raises(FlowTokError, match="it is a folder"):
        store.write_file_atomically(tmp_path, b"")


def test_config_is_readable_json(folder: Path) -> None:
    """Other tools read it: plain JSON with sizes and checksums that `sha256sum` agrees with."""
    import hashlib

    data = json.loads((folder / "config.json").read_text())
    record = data["files"]["velocity.safetensors"]
    content = (folder / "velocity.safetensors").read_bytes()
    assert record == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
