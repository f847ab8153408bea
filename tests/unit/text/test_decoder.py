"""Reading words back from tokens."""

import pytest
import torch

from flowtok.text.decoder import DecoderBlock, TextDecoder, TextDecoderConfig, candidates, reading_loss

CONFIG = TextDecoderConfig(vocabulary_size=11, num_tokens=5, token_channels=4, width=16, depth=1, num_heads=2)


def decoder(**changes: int | bool) -> TextDecoder:
    network = TextDecoder(TextDecoderConfig(**(vars(CONFIG) | changes)))
    network.initialize(torch.Generator().manual_seed(0))
    return network


def test_every_position_scores_every_word() -> None:
    assert decoder()(torch.zeros(3, 5, 4)).shape == (3, 5, 11)


def test_what_stands_after_the_end_does_not_count() -> None:
    # Otherwise the padding, most of a short caption, would drown the words.
    network, z_BLC = decoder(), torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(1))
    ids_BS = torch.tensor([[1, 5, 2, 0, 0], [1, 6, 7, 2, 0]])
    logits_BSV = network(z_BLC)
    by_hand = torch.stack([-logits_BSV[b, s].log_softmax(-1)[ids_BS[b, s]] for b, s in (ids_BS != 0).nonzero()]).mean()
    assert torch.allclose(reading_loss(network, z_BLC, ids_BS, 0), by_hand, atol=1e-6)


def test_a_tied_decoder_scores_with_the_encoders_words_and_does_not_store_them() -> None:
    network = decoder(tied_width=6)
    words_VE = torch.randn(11, 6)
    network.tie(words_VE)
    z_BLC = torch.randn(1, 5, 4)
    assert torch.allclose(network(z_BLC), network.states(z_BLC) @ words_VE.T, atol=1e-6)
    assert not any("word_table" in key for key in network.state_dict())


def test_a_word_table_of_another_encoder_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(11, 6\).*\(12, 6\)"):
        decoder(tied_width=6).tie(torch.zeros(12, 6))


def test_a_decoder_learns_to_read() -> None:
    network = decoder()
    z_BLC = torch.randn(8, 5, 4, generator=torch.Generator().manual_seed(1))
    ids_BS = torch.randint(1, 11, (8, 5), generator=torch.Generator().manual_seed(2))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        reading_loss(network, z_BLC, ids_BS, 0).backward()
        optimizer.step()
    assert torch.equal(network(z_BLC).argmax(-1), ids_BS)


def test_a_causal_decoder_sees_no_later_word() -> None:
    # If it did, training would copy the answer and reading, which has no answer yet, would write nonsense.
    network = decoder(causal=True)
    z_BLC = torch.randn(1, 5, 4, generator=torch.Generator().manual_seed(1))
    one, other = torch.tensor([[1, 5, 2, 3, 4]]), torch.tensor([[1, 5, 9, 8, 7]])
    first, second = network(z_BLC, one), network(z_BLC, other)
    assert torch.equal(first[:, :3], second[:, :3])
    assert not torch.allclose(first[:, 3:], second[:, 3:])


def test_a_causal_decoder_reads_what_it_has_learned_and_stops_at_the_end() -> None:
    network = decoder(causal=True, tied_width=6)
    network.tie(torch.randn(11, 6, generator=torch.Generator().manual_seed(3)))
    z_BLC = torch.randn(6, 5, 4, generator=torch.Generator().manual_seed(1))
    ids_BS = torch.randint(3, 11, (6, 5), generator=torch.Generator().manual_seed(2))
    ids_BS[:3, 2], ids_BS[:3, 3:], ids_BS[3:, 4] = 2, 0, 2  # two lengths, end mark 2, padding 0
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for _ in range(120):
        optimizer.zero_grad()
        reading_loss(network, z_BLC, ids_BS, 0).backward()
        optimizer.step()
    read_BS = network.read(z_BLC, end_id=2)
    assert torch.equal(read_BS[:3, :3], ids_BS[:3, :3])
    assert torch.equal(read_BS[3:], ids_BS[3:])
    assert (read_BS[:3, 3:] == 2).all()
    assert torch.equal(network.read(z_BLC[1:2], end_id=2), read_BS[1:2]), "the batch must not change what is read"


@pytest.mark.parametrize("tied_width", [None, 6])
def test_reading_computes_each_position_once_and_reads_what_all_of_them_together_would(tied_width: int | None) -> None:
    # Thousands of pictures are captioned for a score: computing all earlier words anew for each next one took minutes.
    network = decoder(causal=True, depth=3, num_tokens=9, tied_width=tied_width)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.4)
    if tied_width is not None:
        network.tie(torch.randn(11, 6, generator=torch.Generator().manual_seed(3)))
    z_BLC = 3 * torch.randn(16, 9, 4, generator=torch.Generator().manual_seed(1))
    whole_BS = torch.zeros(16, 9, dtype=torch.long)
    for place in range(9):
        whole_BS[:, place] = network(z_BLC, whole_BS[:, : place + 1])[:, -1].argmax(-1)
    positions: list[int] = []
    for block in network.blocks:
        assert isinstance(block, DecoderBlock)
        block.attention.qkv.register_forward_hook(lambda _, given, out: positions.append(given[0].shape[1]))
    assert torch.equal(network.read(z_BLC), whole_BS) and len(whole_BS.unique(dim=0)) > 4
    assert sum(positions) == 3 * (9 + 9)
    ended_BS = network.read(z_BLC, end_id=7)
    for row, whole in zip(ended_BS.tolist(), whole_BS.tolist(), strict=True):
        length = whole.index(7) if 7 in whole else 9
        assert row[:length] == whole[:length] and set(row[length:]) <= {7}


def test_a_decoder_is_given_words_exactly_if_it_reads_with_them() -> None:
    with pytest.raises(ValueError, match="words so far"):
        decoder(causal=True)(torch.zeros(1, 5, 4))
    with pytest.raises(ValueError, match="words so far"):
        decoder()(torch.zeros(1, 5, 4), torch.zeros(1, 5, dtype=torch.long))


def test_choosing_among_all_words_is_the_whole_softmax() -> None:
    network, z_BLC = decoder(), torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(1))
    ids_BS = torch.tensor([[1, 5, 2, 0, 0], [1, 6, 7, 2, 0]])
    whole = reading_loss(network, z_BLC, ids_BS, 0)
    assert torch.allclose(reading_loss(network, z_BLC, ids_BS, 0, torch.arange(11)), whole, atol=1e-6)
    fewer = candidates(ids_BS.unique(), 11, 2, torch.Generator().manual_seed(0))
    assert fewer is not None
    assert set(ids_BS.flatten().tolist()) <= set(fewer.tolist())
    assert fewer.tolist() == sorted(set(fewer.tolist()))
    assert reading_loss(network, z_BLC, ids_BS, 0, fewer) < whole
