"""A small vision-language backbone for SmolVLA, made without a download: sizes, tokenizer, processor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsewm.errors import UserError
from sparsewm.files import disk_errors, replace_folder, temporary_folder
from sparsewm.proposals.version import lerobot_imports

with lerobot_imports("vision-language backbones"):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import (
        LlamaConfig,
        PreTrainedTokenizerFast,
        SmolVLMConfig,
        SmolVLMImageProcessor,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
    )

SPECIAL = {
    "pad_token": "<pad>",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "image_token": "<image>",
    "fake_image_token": "<fake_token_around_image>",
    "global_image_token": "<global-img>",
    "end_of_utterance_token": "<end_of_utterance>",
}


@dataclass(frozen=True)
class BackboneSizes:
    """Sizes of a SmolVLM.

    Attributes:
        image, patch: sides in pixels; a picture becomes (image / patch / shuffle)^2 tokens.
        shuffle: side of the squares of patches that become one token.
        width, layers, heads, mlp: of the vision encoder and of the language model alike.
        vocabulary: most tokens the tokenizer may have.
    """

    image: int = 112
    patch: int = 14
    shuffle: int = 1
    width: int = 128
    layers: int = 4
    heads: int = 4
    mlp: int = 256
    vocabulary: int = 512


def write_backbone(folder: Path, texts: Sequence[str], sizes: BackboneSizes = BackboneSizes()) -> Path:
    """Write a folder that SmolVLA takes as `vlm_model_name`: sizes and words of a SmolVLM, without weights.

    Args:
        folder: where to. texts: instructions the tokenizer's words come from; it reads any other text byte by
            byte. sizes: of the backbone.

    Raises:
        UserError: patches do not tile the picture, or the folder cannot be written.
    """
    if sizes.image % (sizes.patch * sizes.shuffle) or sizes.width % (2 * sizes.heads):
        raise UserError(
            f"a picture of {sizes.image} px has no whole number of squares of {sizes.shuffle} patches of "
            f"{sizes.patch} px, or width {sizes.width} none of {sizes.heads} heads: choose other sizes"
        )
    tokenizer = _tokenizer(texts, sizes.vocabulary)
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=sizes.width,
        intermediate_size=sizes.mlp,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.heads,
        head_dim=sizes.width // sizes.heads,
        max_position_embeddings=1024,
        rms_norm_eps=1e-5,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )
    config = SmolVLMConfig(
        image_token_id=tokenizer.convert_tokens_to_ids(SPECIAL["image_token"]),
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
        scale_factor=sizes.shuffle,
        text_config=text.to_dict(),
        vision_config={
            "hidden_size": sizes.width,
            "intermediate_size": sizes.mlp,
            "num_hidden_layers": sizes.layers,
            "num_attention_heads": sizes.heads,
            "image_size": sizes.image,
            "patch_size": sizes.patch,
        },
        architectures=["SmolVLMForConditionalGeneration"],
    )
    side = {"longest_edge": sizes.image}
    processor = SmolVLMProcessor(
        SmolVLMImageProcessor(size=side, max_image_size=side, do_image_splitting=False),
        tokenizer,
        SmolVLMVideoProcessor(size=side, max_image_size=side),
        image_seq_len=(sizes.image // sizes.patch // sizes.shuffle) ** 2,
    )
    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(folder) as place:
            config.save_pretrained(place / "new")
            processor.save_pretrained(place / "new")
            replace_folder(place / "new", folder)
    return folder


def smolvla_options(backbone: Path, sizes: BackboneSizes, chunk: int, denoise: int) -> dict[str, Any]:
    """What a SmolVLA's configuration says of its backbone, and of chunks for small environments.

    Args:
        backbone: folder that `write_backbone` wrote, with these sizes.
        chunk: actions of a chunk. denoise: denoising steps of a chunk.
    """
    return {
        "vlm_model_name": str(backbone),
        "num_vlm_layers": 0,  # all of them
        "resize_imgs_with_padding": (sizes.image, sizes.image),
        "chunk_size": chunk,
        "n_action_steps": chunk,
        "num_steps": denoise,
        "max_state_dim": 8,
        "max_action_dim": 4,
        "push_to_hub": False,
    }


def _tokenizer(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte pairs of the texts; every byte is a token of its own, so that no text is unknown."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=max(vocabulary, len(alphabet) + len(SPECIAL)),
        special_tokens=list(SPECIAL.values()),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    general = {name: SPECIAL[name] for name in ("pad_token", "bos_token", "eos_token")}
    extra = {name: token for name, token in SPECIAL.items() if name not in general}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, extra_special_tokens=extra, **general)
