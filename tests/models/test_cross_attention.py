"""Cross-attention against plain loops, and its keyless path against keys and values as the textbook has them."""

import pytest
import torch

from cca_hf.models.cross_attention import CrossAttention

QUERIES, TOKENS, WIDTH, HEADS = 3, 19, 32, 4


def make(bias: bool, dropout: float) -> CrossAttention:
    torch.manual_seed(0)
    return CrossAttention(WIDTH, HEADS, bias=bias, dropout=dropout).double()


def textbook(module: CrossAttention, queries: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    query, key, value = (
        projection(states).unflatten(-1, (HEADS, WIDTH // HEADS)).transpose(1, 2)
        for projection, states in ((module.q_proj, queries), (module.k_proj, tokens), (module.v_proj, tokens))
    )
    scores = query @ key.transpose(2, 3) * module.scaling
    weights = scores.softmax(-1, dtype=torch.float32).to(scores.dtype).transpose(1, 2).contiguous()  # (B, Q, heads, N)
    dropped = torch.nn.functional.dropout(weights, p=module.dropout, training=module.training)
    attended = (dropped.transpose(1, 2) @ value).transpose(1, 2)
    return module.o_proj(attended.flatten(2)), weights


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_output_weights_and_gradients(bias, dropout):
    module = make(bias, dropout)
    queries, tokens = torch.randn(2, QUERIES, WIDTH).double(), torch.randn(2, TOKENS, WIDTH).double()
    results = []
    for attend in (lambda *given: module(*given, output_attentions=True), lambda *given: textbook(module, *given)):
        torch.manual_seed(1)  # the same weights are dropped
        x, q = tokens.clone().requires_grad_(), queries.clone().requires_grad_()
        output, weights = attend(q, x)
        gradients = torch.autograd.grad((output**3).sum(), [x, q, *module.parameters()])
        results.append((output, weights, *gradients))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours.double(), theirs.double(), atol=1e-6, rtol=1e-5)


def test_it_makes_keys_where_that_is_cheaper_or_where_they_were_changed(monkeypatch):
    module = make(True, 0.0)
    without_keys = []
    attend = CrossAttention._attend_without_keys
    monkeypatch.setattr(
        CrossAttention, "_attend_without_keys", lambda *given: without_keys.append(given[1].shape) or attend(*given)
    )
    tokens = torch.randn(1, TOKENS, WIDTH).double()
    module(torch.randn(1, WIDTH // HEADS - 1, WIDTH).double(), tokens)
    module(torch.randn(1, WIDTH // HEADS, WIDTH).double(), tokens)
    assert without_keys == [(1, WIDTH // HEADS - 1, HEADS, WIDTH // HEADS)]

    class Adapted(torch.nn.Linear):
        """As a library of adapters or of quantisation puts in a layer's place: its weight is not all there is."""

        def forward(self, states: torch.Tensor) -> torch.Tensor:
            return super().forward(states) + 1

    adapted = Adapted(WIDTH, WIDTH).double()
    adapted.load_state_dict(module.v_proj.state_dict())
    queries = torch.randn(1, QUERIES, WIDTH).double()
    before = module(queries, tokens)[0]
    module.v_proj = adapted
    torch.testing.assert_close(module(queries, tokens)[0] - before, module.o_proj.weight.sum(1).expand_as(before))


def looped(
    module: CrossAttention, queries: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The formula, one batch row, head, query and token after the other; the mask is added to the scores."""
    batch, size = len(queries), module.head_dim
    weights = torch.zeros(batch, module.num_heads, queries.shape[1], tokens.shape[1], dtype=torch.float64)
    rows = []
    for b in range(batch):
        for q in range(queries.shape[1]):
            heads = []
            for h in range(module.num_heads):
                part = slice(h * size, (h + 1) * size)
                query = module.q_proj(queries[b, q])[part]
                scores = []
                for n in range(tokens.shape[1]):
                    score = (query * module.k_proj(tokens[b, n])[part]).sum() / size**0.5
                    scores.append(score if mask is None else score + mask[b, h, q, n])
                exponents = torch.stack(scores).exp()
                shares = exponents / exponents.sum()
                weights[b, h, q] = shares.detach()
                heads.append(sum(shares[n] * module.v_proj(tokens[b, n])[part] for n in range(tokens.shape[1])))
            rows.append(module.o_proj(torch.cat(heads)))
    return torch.stack(rows).unflatten(0, (batch, -1)), weights


def masks(kind: str, num_queries: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """A mask as it is given, and what it adds to the scores."""
    generator = torch.Generator().manual_seed(4)
    shape = (2, 2, num_queries, 5)
    if kind == "none":
        return None, None
    if kind == "float":
        mask = torch.randn(shape, generator=generator, dtype=torch.float64)
        return mask, mask
    if kind == "tokens":  # the same for all heads and queries, as padded words are
        visible = torch.tensor([[True, True, False, True, False], [True, False, False, False, False]])[:, None, None]
    else:
        visible = torch.rand(shape, generator=generator) > 0.5
        visible[..., 0] = True
    return visible, torch.where(visible, 0.0, -torch.inf).expand(shape)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("num_queries", [2, 4])  # without and with keys
@pytest.mark.parametrize("kind", ["none", "bool", "tokens", "float"])
def test_widths_and_masks_against_a_plain_loop(implementation, num_queries, kind):
    torch.manual_seed(2)
    module = CrossAttention(6, 2, key_dim=10, inner_dim=8, output_dim=7).double()
    queries = torch.randn(2, num_queries, 6, dtype=torch.float64, requires_grad=True)
    tokens = torch.randn(2, 5, 10, dtype=torch.float64, requires_grad=True)
    mask, added = masks(kind, num_queries)
    expected, expected_weights = looped(module, queries, tokens, added)
    output, none = module(queries, tokens, mask, attn_implementation=implementation)
    assert output.shape == (2, num_queries, 7) and none is None
    torch.testing.assert_close(output, expected, atol=1e-6, rtol=1e-5)
    weights = module(queries, tokens, mask, attn_implementation=implementation, output_attentions=True)[1]
    torch.testing.assert_close(weights.double(), expected_weights.transpose(1, 2), atol=1e-6, rtol=1e-5)
    single_mask = None if mask is None else mask[..., -1:, :]
    single, weights = module(queries[:, -1], tokens, single_mask, output_attentions=True)
    torch.testing.assert_close(single, expected[:, -1], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(weights.double(), expected_weights[:, :, -1], atol=1e-6, rtol=1e-5)
    inputs = [queries, tokens, *module.parameters()]
    for ours, theirs in zip(
        torch.autograd.grad((output**3).sum(), inputs), torch.autograd.grad((expected**3).sum(), inputs), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("num_queries", [2, 4])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_a_query_that_may_attend_to_nothing_is_no_nan(implementation, num_queries):
    module = CrossAttention(8, 2)
    mask = torch.ones(1, 1, num_queries, 5, dtype=torch.bool)
    mask[:, :, 0] = False
    output = module(torch.randn(1, num_queries, 8), torch.randn(1, 5, 8), mask, attn_implementation=implementation)[0]
    assert torch.isfinite(output).all()


def test_refusals():
    with pytest.raises(ValueError, match="num_heads must divide the inner width; got 3 heads and 8"):
        CrossAttention(6, 3, inner_dim=8)
    module, states = CrossAttention(8, 2), torch.zeros(1, 2, 8)
    with pytest.raises(ValueError, match="needs the attention 'eager' or 'sdpa'; got 'flex_attention'"):
        module(states, states, torch.ones(2, 2, dtype=torch.bool), attn_implementation="flex_attention")
