"""Decoders of the official formats, on files made by hand here."""

import struct

import numpy as np
import pytest
import torch

from openwork.tasks.cifar10 import batch, shifted_and_flipped
from openwork.tasks.mnist import idx
from openwork.tasks.tiny_shakespeare import windows
from openwork.tasks.wikitext2 import words


def test_idx_is_big_endian_and_row_major():
    array = np.arange(2 * 3 * 5, dtype=np.uint8).reshape(2, 3, 5)
    content = b"\0\0\x08\x03" + struct.pack(">3I", 2, 3, 5) + array.tobytes()
    assert torch.equal(idx(content), torch.from_numpy(array))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "begins with"),
        (b"\0\0\x09\x01\0\0\0\0", "begins with 00 00 08"),
        (b"\0\0\x08\x02\0\0\0\x01", "12 bytes before its data; found 8"),
        (b"\0\0\x08\x01\0\0\0\x03ab", "found 2"),
        (b"\0\0\x08\x01\0\0\0\x01ab", "found 2"),
    ],
)
def test_a_broken_idx_file_is_refused(content, reason):
    with pytest.raises(ValueError, match=reason):
        idx(content)


def test_a_cifar_record_is_a_label_and_three_planes():
    record = np.concatenate([[7], np.full(1024, 10), np.full(1024, 20), np.full(1024, 30)])
    record[1 + 33] = 99  # red, second row, second column
    split = batch(np.concatenate([record, record]).astype(np.uint8).tobytes())
    assert split.targets.tolist() == [7, 7]
    assert split.inputs.shape == (2, 3, 32, 32)
    assert split.inputs[1, 0, 1, 1] == 99
    assert split.inputs[0, :, 0, 0].tolist() == [10, 20, 30]


@pytest.mark.parametrize("content", [b"", b"x" * 3072])
def test_a_cifar_batch_is_made_of_whole_records(content):
    with pytest.raises(ValueError, match="multiple of 3073"):
        batch(content)


def test_augmented_images_are_shifted_and_mirrored_copies():
    images = torch.arange(60 * 2 * 8 * 6, dtype=torch.float32).view(60, 2, 8, 6) + 1
    changed = shifted_and_flipped(images, torch.Generator().manual_seed(0))
    assert changed.shape == images.shape
    padded = torch.nn.functional.pad(images, (4, 4, 4, 4))
    mirrored = 0
    for image, frame in zip(changed, padded, strict=True):
        crops = [frame[:, r : r + 8, c : c + 6] for r in range(9) for c in range(9)]
        straight = any(torch.equal(image, crop) for crop in crops)
        mirrored += not straight
        assert straight or any(torch.equal(image, crop.flip(2)) for crop in crops)
    assert 15 < mirrored < 45


def test_the_target_of_a_position_is_the_next_token():
    split = windows(torch.arange(23), 4)
    assert split.inputs.shape == (5, 4)
    assert torch.equal(split.targets, split.inputs + 1)
    assert len(windows(torch.arange(21), 4)) == 5
    assert len(windows(torch.arange(20), 4)) == 4


@pytest.mark.parametrize("context", [0, -1, 23])
def test_windows_need_enough_tokens(context):
    with pytest.raises(ValueError, match="need at least"):
        windows(torch.arange(23), context)


def test_words_of_lines_end_with_their_ends():
    assert words(" = A = \n\n b  c\n") == ["=", "A", "=", "<eos>", "<eos>", "b", "c", "<eos>"]
