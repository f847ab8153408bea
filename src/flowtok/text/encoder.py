"""Frozen language encoders: captions to features and ids of a fixed length, and ids back to words.

Opens BERT-like encoders such as all-MiniLM-L6-v2 (bert.py) and CLIP's text tower (transformers_folder.py), offline,
from a folder with config.json, model.safetensors and tokenizer.json. CLIP's way with words is in clip_words.py. Knows
nothing of what the features are for; see projector.py.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from flowtok.checkpoints import store
from flowtok.checkpoints.component import upload
from flowtok.checkpoints.folder import TEXT_ENCODER_FOLDER
from flowtok.errors import CheckpointError
from flowtok.text.bert import BertEncoder, load_bert
from flowtok.text.clip_words import clip_word_ids
from flowtok.text.transformers_folder import load_clip, quiet_transformers

Activation = Literal["gelu", "quick_gelu"]
Padding = Literal["states", "sentence"]
# What flowtok adds to transformers' config.json, which has no place for the length that captions are cut to, and for
# what stands behind them.
NUM_TOKENS_KEY = "flowtok_num_tokens"
PADDING_KEY = "flowtok_padding"


@dataclass(frozen=True, kw_only=True)
class TextEncoderConfig:
    """What a model expects of its language encoder; the defaults are all-MiniLM-L6-v2 with 32 ids.

    Attributes:
        family: "bert" for BERT-like encoders, "clip" for CLIP's text tower.
        width: E, width of the features.
        num_tokens: S, ids and features of every caption, with start and end.
        vocabulary_size: V, number of different ids.
        activation: The feed-forward activation. CLIP's original weights want "quick_gelu"; which of the two a model
            was trained with cannot be seen in its weights, so it is recorded here.
        padding: What stands behind the words: "states", the encoder's own at these positions, or "sentence", the mean
            of the words' states, its channels rolled on from one position to the next, so that each shows another side
            of what the whole caption means. Sentence encoders, such as MiniLM, have learned that this mean is near for
            captions of the same meaning; CLIP's tower has not.
    """

    family: Literal["bert", "clip"] = "bert"
    width: int = 384
    num_tokens: int = 32
    vocabulary_size: int = 30522
    activation: Activation = "gelu"
    padding: Padding = "states"

    def __post_init__(self) -> None:
        if self.family not in ("bert", "clip"):
            raise ValueError(f'the text encoder\'s family is "bert" or "clip", not {self.family!r}')
        if self.activation not in ("gelu", "quick_gelu"):
            raise ValueError(f'the text encoder\'s activation is "gelu" or "quick_gelu", not {self.activation!r}')
        if self.padding not in ("states", "sentence") or (self.padding == "sentence" and self.family != "bert"):
            raise ValueError(f'padding is "states", or "sentence" with a bert encoder, not {self.padding!r}')
        if self.num_tokens < 3:
            raise ValueError(f"num_tokens must be at least 3 (start, a word, end), not {self.num_tokens}")
        if min(self.width, self.vocabulary_size) < 1:
            raise ValueError(f"width and vocabulary_size must be positive, not {self.width}, {self.vocabulary_size}")


CLIP_L14 = TextEncoderConfig(family="clip", width=768, num_tokens=77, vocabulary_size=49408, activation="quick_gelu")


@dataclass(frozen=True, kw_only=True)
class TextFeatures:
    """Encoded captions.

    Attributes:
        features_BSE: The encoder's last hidden states; behind the words what `TextEncoderConfig.padding` says, since
            every position becomes a token.
        ids_BS: The ids (int64): start, words, end, padding.
    """

    features_BSE: Tensor
    ids_BS: Tensor


class TextEncoder(nn.Module):
    """A frozen language encoder of fixed length. It never trains and stays in evaluation mode.

    A caption's features do not depend on the captions beside it, but for rounding: S of them always come out. In
    BERT-like encoders padding is masked, so real words do not see it; in CLIP nothing needs a mask, as words see only
    those before them.
    """

    def __init__(self, config: TextEncoderConfig, network: nn.Module, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.config = config
        self.network = network.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        # Start, end, cut and padding are set here, so that any folder's tokenizer gives the same ids; a caption that
        # spells out a special token is text.
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode_special_tokens = True
        names = ("[CLS]", "[SEP]", "[PAD]") if config.family == "bert" else ("<|startoftext|>", "<|endoftext|>", None)
        self.start_id, self.end_id = (self._id_of(name) for name in names[:2])
        self.pad_id = self._id_of(names[2]) if names[2] is not None else 0

    @classmethod
    def from_folder(
        cls, folder: str | Path, config: TextEncoderConfig, dtype: torch.dtype = torch.float32
    ) -> "TextEncoder":
        """Loads an encoder from a folder in transformers' layout, without a network.

        Args:
            folder: Holds config.json, model.safetensors and tokenizer.json.
            config: What the model expects; the folder must fit it.
            dtype: Type of the weights and the features.

        Raises:
            CheckpointError: If something is missing, damaged or does not fit.
        """
        folder = Path(folder)
        found = read_text_encoder_config(
            folder, num_tokens=config.num_tokens, activation=config.activation, padding=config.padding
        )
        if found != config:
            raise CheckpointError(f"the text encoder in {folder} does not fit: the model needs {config}, it is {found}")
        load = load_bert if config.family == "bert" else load_clip
        network = load(folder, config.activation, dtype)
        try:
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the library raises a bare Exception for any damage
            raise CheckpointError(f"cannot read {folder / 'tokenizer.json'}: {error}") from error
        if tokenizer.get_vocab_size() > config.vocabulary_size:
            raise CheckpointError(
                f"{folder / 'tokenizer.json'} has {tokenizer.get_vocab_size()} words, "
                f"more than the encoder's {config.vocabulary_size}"
            )
        return cls(config, network, tokenizer)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        num_tokens: int | None = None,
        activation: Activation | None = None,
        padding: Padding | None = None,
        revision: str | None = None,
        token: str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> "TextEncoder":
        """Opens an encoder in transformers' layout from a folder or the Hub, or takes it out of a whole model.

        Args:
            name_or_path: A folder or Hub id of an encoder or of a flowtok model, or a shipped model's name.
            num_tokens: S; as it was saved where not given, or else all positions that the encoder has.
            activation: Replaces the activation that config.json names.
            padding: What stands behind the words; as it was saved where not given, or else the encoder's states.
            revision: Branch, tag or commit, for the Hub.
            token: Access token, for the Hub.
            dtype: Type of the weights and the features.

        Raises:
            CheckpointError: Nothing there, or something is missing, damaged or does not fit.
        """
        folder = store.resolve(name_or_path, revision=revision, token=token)
        if (folder / TEXT_ENCODER_FOLDER).is_dir():
            recorded = store.read_config(folder).part("text_encoder", TextEncoderConfig)
            num_tokens, activation = num_tokens or recorded.num_tokens, activation or recorded.activation
            padding, folder = padding or recorded.padding, store.text_encoder_folder(folder)
        config = read_text_encoder_config(folder, num_tokens=num_tokens, activation=activation, padding=padding)
        return cls.from_folder(folder, config, dtype)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Writes config.json, model.safetensors and tokenizer.json, which transformers reads too."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        network: Any = self.network
        own = {NUM_TOKENS_KEY: self.config.num_tokens, PADDING_KEY: self.config.padding}
        if isinstance(network, BertEncoder):
            network.save_pretrained(folder, own)
        else:
            network.config.hidden_act = self.config.activation
            for key, value in own.items():
                setattr(network.config, key, value)
            with quiet_transformers():
                network.save_pretrained(folder)
        store.write_file_atomically(folder / "tokenizer.json", self.tokenizer.to_str(pretty=True))
        return folder

    def push_to_hub(
        self, repo_id: str, *, token: str | None = None, private: bool | None = None, revision: str | None = None,
        commit_message: str = "Upload text encoder",
    ) -> str:  # fmt: skip
        """Uploads what `save_pretrained` writes to a repository on the Hub; returns the commit's address."""
        return upload(
            self.save_pretrained, repo_id, token=token, private=private, revision=revision,
            commit_message=commit_message,
        )  # fmt: skip

    def train(self, mode: bool = True) -> "TextEncoder":
        """Does nothing: a frozen encoder has no training mode."""
        del mode
        return self

    @torch.no_grad()
    def encode(self, texts: list[str]) -> TextFeatures:
        """Encodes captions; those that are too long are cut.

        Returns:
            Features in the type of the weights, and ids, both where the encoder is.

        Raises:
            ValueError: If there are no captions.
        """
        if not texts:
            raise ValueError("there are no captions to encode")
        ids_BS = self.ids(texts).to(next(self.network.parameters()).device)
        return TextFeatures(features_BSE=self.features(ids_BS), ids_BS=ids_BS)

    def ids(self, texts: Sequence[str]) -> Tensor:
        """The ids (B, S) of captions, int64, on the CPU; those that are too long are cut."""
        return torch.tensor([self._framed(text) for text in texts], dtype=torch.long)

    @torch.no_grad()
    def features(self, ids_BS: Tensor, *, cut: bool = False) -> Tensor:
        """The features (B, S, E) of captions that are ids already.

        Args:
            ids_BS: Padded ids.
            cut: Computes only as many positions as the longest caption has words, where what stands behind them is not
                needed: several times as fast for short captions, but then the last digits depend on the longest one.
        """
        if self.config.family == "clip":
            return self.network(input_ids=ids_BS).last_hidden_state
        word_BS = ids_BS != self.pad_id
        if self.config.padding == "states":
            return self.network(input_ids=ids_BS, attention_mask=word_BS.long()).last_hidden_state
        longest = int(word_BS.sum(1).max()) if cut else ids_BS.shape[1]
        ids_BT, word_BT = ids_BS[:, :longest], word_BS[:, :longest]
        states_BTE = self.network(input_ids=ids_BT, attention_mask=word_BT.long()).last_hidden_state
        return with_sentence(states_BTE, word_BT, ids_BS.shape[1])

    @property
    def word_table_VE(self) -> Tensor:
        """The encoder's word embeddings, which a tied text decoder scores its words with."""
        embeddings = self.network.get_input_embeddings()  # type: ignore[operator]
        return embeddings.weight

    def count(self, texts: list[str]) -> list[int]:
        """Ids that each caption has before it is cut, start and end included; more than S means that it is cut."""
        return [len(self._word_ids(text)) + 2 for text in texts]

    def words(self, ids_BS: Tensor) -> list[str]:
        """Ids back to captions: what stands before the first end, without start and padding."""
        captions = []
        for ids in ids_BS.tolist():
            ids = ids[: ids.index(self.end_id)] if self.end_id in ids else ids
            kept = [i for i in ids if i not in (self.start_id, self.pad_id if self.config.family == "bert" else -1)]
            # CLIP's word pieces carry the end of their word, which only some of its tokenizer files take away again.
            caption = self.tokenizer.decode(kept, skip_special_tokens=True).replace("</w>", " ")
            captions.append(caption.strip())
        return captions

    def _framed(self, text: str) -> list[int]:
        length = self.config.num_tokens
        ids = [self.start_id, *self._word_ids(text)[: length - 2], self.end_id]
        return ids + [self.pad_id] * (length - len(ids))

    def _word_ids(self, text: str) -> list[int]:
        # A lone surrogate is no character; the tokenizer takes none.
        text = text.encode("utf-8", "replace").decode("utf-8")
        if self.config.family == "bert":
            return self.tokenizer.encode(text, add_special_tokens=False).ids
        return clip_word_ids(text, self.tokenizer, self.start_id, self.end_id)

    def _id_of(self, name: str) -> int:
        number = self.tokenizer.token_to_id(name)
        if number is None:
            raise CheckpointError(f"the text encoder's tokenizer has no {name}; it is not one for {self.config.family}")
        return number


def with_sentence(states_BTE: Tensor, word_BT: Tensor, length: int) -> Tensor:
    """The words' states, and behind them the mean of these, rolled by E / S channels more at every position.

    Args:
        states_BTE: Last hidden states.
        word_BT: Where words stand, start and end among them.
        length: S, how many positions come out; at least T.
    """
    states_BTE = states_BTE * word_BT[..., None]
    sentence_BE = states_BTE.sum(1) / word_BT.sum(1, keepdim=True)
    width = sentence_BE.shape[1]
    roll_S = torch.arange(length, device=sentence_BE.device) * (width // length)
    channel_SE = (torch.arange(width, device=sentence_BE.device) - roll_S[:, None]) % width
    features_BSE = sentence_BE[:, channel_SE]
    return torch.cat(
        [
            torch.where(word_BT[..., None], states_BTE, features_BSE[:, : word_BT.shape[1]]),
            features_BSE[:, word_BT.shape[1] :],
        ],
        dim=1,
    )


def read_text_encoder_config(
    folder: str | Path,
    num_tokens: int | None = None,
    activation: Activation | None = None,
    padding: Padding | None = None,
) -> TextEncoderConfig:
    """Reads what kind of encoder a folder in transformers' layout holds.

    Args:
        folder: Holds config.json.
        num_tokens: S; where it is None, what flowtok saved, or else all positions that the encoder has.
        activation: Replaces the activation that config.json names.
        padding: What stands behind the words; where it is None, what flowtok saved, or else the encoder's states.

    Raises:
        CheckpointError: If config.json is missing, damaged or of another kind of model.
    """
    path = Path(folder) / "config.json"
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        kind = stored["model_type"]
        stored = stored.get("text_config", stored) if kind == "clip" else stored
        if kind not in ("bert", "clip", "clip_text_model"):
            raise CheckpointError(f"{path} describes a {kind} model; a text encoder is bert or clip")
        positions = int(stored.get("max_position_embeddings", 77 if kind != "bert" else 512))
        if num_tokens is not None and num_tokens > positions:
            raise CheckpointError(f"the text encoder in {folder} has {positions} positions, not {num_tokens}")
        return TextEncoderConfig(
            family="bert" if kind == "bert" else "clip",
            width=int(stored.get("hidden_size", 512 if kind != "bert" else 768)),
            num_tokens=num_tokens if num_tokens is not None else int(stored.get(NUM_TOKENS_KEY, positions)),
            vocabulary_size=int(stored.get("vocab_size", 49408 if kind != "bert" else 30522)),
            activation=activation or stored.get("hidden_act", "quick_gelu" if kind != "bert" else "gelu"),
            padding=padding or stored.get(PADDING_KEY, "states"),
        )
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"cannot read the text encoder's {path}: {error.strerror or error}") from error
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(f"{path} is not a text encoder's config: {error}") from error
