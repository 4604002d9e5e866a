"""The last block of a vision transformer for the tokens that are looked at.

A classifier on the class token reads one of some 200 tokens that the last block makes. The others give it their keys
and values; their queries, projections and MLPs are never used: 7 % of the products of a ViT with twelve blocks.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from simhpc.zoo.timm_import import timm


class PrefixBlock(nn.Module):
    """A block of timm's VisionTransformer for its first tokens only: (B, N, D) to (B, P, D).

    Args:
        block: in eval mode, its weights are shared.
        n_prefix: P.
    """

    def __init__(self, block: Any, n_prefix: int) -> None:
        super().__init__()
        self.block = block
        self.n_prefix = n_prefix
        qkv, width = block.attn.qkv, block.attn.attn_dim
        self.query = _rows(qkv, 0, width)
        self.key_value = _rows(qkv, width, 3 * width)
        del block.attn.qkv

    def forward(self, x: Tensor) -> Tensor:
        block = self.block
        normed = block.norm1(x)
        x = x[:, : self.n_prefix] + block.ls1(self._attention(normed))
        prefix: Tensor = x + block.ls2(block.mlp(block.norm2(x)))
        return prefix

    def _attention(self, x: Tensor) -> Tensor:
        attention = self.block.attn
        query = self._heads(self.query(x[:, : self.n_prefix]))
        key, value = map(self._heads, self.key_value(x).chunk(2, dim=-1))
        seen = functional.scaled_dot_product_attention(attention.q_norm(query), attention.k_norm(key), value)
        out: Tensor = attention.proj(attention.norm(seen.transpose(1, 2).flatten(2)))
        return out

    def _heads(self, tokens: Tensor) -> Tensor:
        batch, n, width = tokens.shape
        heads = self.block.attn.num_heads
        return tokens.view(batch, n, heads, width // heads).transpose(1, 2)


def drop_unused_tokens(model: nn.Module) -> int:
    """Make the last block of every vision transformer that classifies by its class token a `PrefixBlock`, in place.

    Returns:
        how many there were: 1 if the model is such a transformer.
    """
    found: list[Any] = [module for module in model.modules() if has_unused_tokens(module)]
    for transformer in found:
        transformer.blocks[-1] = PrefixBlock(transformer.blocks[-1], transformer.num_prefix_tokens)
    return len(found)


def has_unused_tokens(model: Any) -> bool:
    """Whether this very module is a vision transformer of timm's whose last block can be a `PrefixBlock`."""
    transformer = timm.models.vision_transformer
    if not (isinstance(model, transformer.VisionTransformer) and model.global_pool == "token" and len(model.blocks)):
        return False
    last = model.blocks[-1]
    # Exact types: another block may do something else with its tokens.
    return type(last) is transformer.Block and type(last.attn) is timm.layers.Attention and last.attn.gate is None


def _rows(layer: Any, start: int, stop: int) -> nn.Linear:
    part = nn.Linear(layer.in_features, stop - start, bias=layer.bias is not None, device="meta")
    part.weight = nn.Parameter(layer.weight.detach()[start:stop], requires_grad=False)
    if layer.bias is not None:
        part.bias = nn.Parameter(layer.bias.detach()[start:stop], requires_grad=False)
    return part
