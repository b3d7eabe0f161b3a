"""The losses of ADDE equal plain loops over images, attributes and triplets; missing labels take no part."""

import math

import numpy as np
import pytest
import torch

from cca_hf.training.manipulation_losses import ManipulationBatch, ManipulationLoss, ManipulationWeights

VALUES = {"colour": ["red", "blue", "green"], "shape": ["round", "square"], "size": ["s", "m", "l", "xl"]}
COUNTS = [len(values) for values in VALUES.values()]
MARGIN, TEMPERATURE, DIM, IMAGES = 0.5, 0.1, 5, 16
TERMS = ["classification", "local", "whole", "compositional", "consistency", "memory"]


def make_batch(seed: int = 0, missing: float = 0.2) -> ManipulationBatch:
    """Random numbers in float64. Half of the pairs differ in one attribute; labels are missing at random."""
    random = np.random.default_rng(seed)
    labels = np.stack([random.integers(count, size=IMAGES) for count in COUNTS], axis=1)
    for row in range(0, IMAGES, 4):
        labels[row + 1] = labels[row]
        attribute = random.integers(len(COUNTS))
        labels[row + 1, attribute] = (labels[row, attribute] + 1) % COUNTS[attribute]
        labels[row + 2] = labels[row]  # and a positive for each
        labels[row + 3] = labels[row + 1]
    labels[random.random(labels.shape) < missing] = -1
    embeddings = torch.from_numpy(random.normal(size=(IMAGES, len(COUNTS), DIM)))
    logits = torch.from_numpy(random.normal(size=(IMAGES, len(COUNTS), max(COUNTS))))
    for attribute, count in enumerate(COUNTS):
        logits[:, attribute, count:] = -torch.inf
    prototypes = torch.from_numpy(random.normal(size=(sum(COUNTS), len(COUNTS), DIM)))
    for leaf in (embeddings, logits, prototypes):
        leaf.requires_grad_()
    unit = torch.nn.functional.normalize(embeddings, dim=-1)
    unit.retain_grad()
    return ManipulationBatch(unit, logits, prototypes, torch.from_numpy(labels))


def make_loss(**settings) -> ManipulationLoss:
    weights = settings.pop("weights", ManipulationWeights(1.0, 1.0, 1.0, 1.0, 1.0, 1.0))
    return ManipulationLoss(VALUES, weights, margin=MARGIN, **settings)


# ---- Plain loops ----


def shared(first, second):
    return [a for a in range(len(COUNTS)) if first[a] >= 0 and second[a] >= 0]


def squared_distance(left, right, attributes):
    return sum(((left[a] - right[a]) ** 2).sum() for a in attributes) / len(attributes)


def relation(first, second):
    """Whether two label vectors are equal where both are known; None if that is nowhere."""
    attributes = shared(first, second)
    return all(first[a] == second[a] for a in attributes) if attributes else None


def mean_of_active(triplets):
    """Triplets of distances (to the positive, to the negative): semi-hard ones with a loss above 0."""
    losses = [near - far + MARGIN for near, far in triplets if near < far < near + MARGIN]
    return sum(losses) / len(losses) if losses else torch.zeros(())


def place(attribute, value):
    return sum(COUNTS[:attribute]) + value


def changed_images(batch):
    """(image, r' block by block, target labels, the attributes that change) of each valid pair."""
    found = []
    for row in range(IMAGES):
        own, other = batch.labels[row].tolist(), batch.labels[row ^ 1].tolist()
        changes = [a for a in shared(own, other) if own[a] != other[a]]
        if len(changes) not in (1, 2):
            continue
        vector = batch.embeddings[row]
        for a in changes:
            vector = vector + batch.prototypes[place(a, other[a])] - batch.prototypes[place(a, own[a])]
        vector = vector / vector.norm(dim=-1, keepdim=True)
        found.append((vector, [other[a] if a in changes else own[a] for a in range(len(COUNTS))], changes))
    return found


def prototypes_of(batch, labels):
    return sum(batch.prototypes[place(a, value)] for a, value in enumerate(labels) if value >= 0)


def loop_classification(batch):
    losses = []
    for a, count in enumerate(COUNTS):
        rows = [row for row in range(IMAGES) if batch.labels[row, a] >= 0]
        losses.append(
            sum(-batch.logits[row, a, :count].log_softmax(0)[batch.labels[row, a]] for row in rows) / len(rows)
        )
    return sum(losses) / len(losses)


def loop_local(batch):
    losses = []
    for a in range(len(COUNTS)):
        labels, vectors = batch.labels[:, a].tolist(), batch.embeddings[:, a]
        rows = [row for row in range(IMAGES) if labels[row] >= 0]
        triplets = [
            (((vectors[i] - vectors[p]) ** 2).sum(), ((vectors[i] - vectors[n]) ** 2).sum())
            for i in rows for p in rows for n in rows
            if i != p and labels[p] == labels[i] and labels[n] != labels[i]
        ]  # fmt: skip
        losses.append(mean_of_active(triplets))
    return sum(losses) / len(losses)


def loop_smooth_local(batch):
    """The mean over the positives of an anchor of log(1 + sum of exp((far - near) / t) over its negatives."""
    attributes = []
    for a in range(len(COUNTS)):
        labels, vectors, losses = batch.labels[:, a].tolist(), batch.embeddings[:, a], []
        rows = [row for row in range(IMAGES) if labels[row] >= 0]
        for i in rows:
            positives = [vectors[i] @ vectors[p] for p in rows if p != i and labels[p] == labels[i]]
            negatives = [vectors[i] @ vectors[n] for n in rows if labels[n] != labels[i]]
            if positives and negatives:
                sums = [sum(((far - near) / TEMPERATURE).exp() for far in negatives) for near in positives]
                losses.append(sum((1 + each).log() for each in sums) / len(sums))
        attributes.append(sum(losses) / len(losses))
    return sum(attributes) / len(attributes)


def loop_triplets(anchors, batch_vectors):
    """Anchors and candidates are (vector, labels, key); a candidate with the anchor's key is no positive."""
    triplets = []
    for vector, labels, key, needed in anchors:
        relations = [
            (relation(labels, other), squared_distance(vector, each, shared(labels, other)), number, other)
            for each, other, number in batch_vectors
            if relation(labels, other) is not None
        ]
        positives = [
            distance for equal, distance, number, other in relations
            if equal and number != key and all(other[a] >= 0 for a in needed)
        ]  # fmt: skip
        negatives = [distance for equal, distance, *_ in relations if not equal]
        triplets += [(near, far) for near in positives for far in negatives]
    return mean_of_active(triplets)


def loop_whole(batch):
    rows = [(batch.embeddings[row], batch.labels[row].tolist(), row) for row in range(IMAGES)]
    return loop_triplets([(*each, []) for each in rows], rows)


def loop_compositional(batch):
    rows = [(batch.embeddings[row], batch.labels[row].tolist(), row) for row in range(IMAGES)]
    anchors = [(vector, labels, None, changes) for vector, labels, changes in changed_images(batch)]
    assert len(anchors) >= 4
    return loop_triplets(anchors, rows)


def with_changed(batch):
    rows = [(batch.embeddings[row], batch.labels[row].tolist()) for row in range(IMAGES)]
    return rows + [(vector, labels) for vector, labels, _ in changed_images(batch)]


def loop_l1_consistency(batch):
    differences = []
    for vector, labels in with_changed(batch):
        expected = prototypes_of(batch, labels)
        differences += [(vector[a] - expected[a]).abs().sum() / DIM**0.5 for a in range(len(COUNTS)) if labels[a] >= 0]
    return sum(differences) / len(differences)


def loop_triplet_consistency(batch):
    vectors = [(vector, labels, number) for number, (vector, labels) in enumerate(with_changed(batch))]
    anchors = []
    for _, labels, _ in vectors:
        if max(labels) >= 0:
            expected = prototypes_of(batch, labels)
            anchors.append((expected / expected.norm(dim=-1, keepdim=True), labels, None, []))
    return loop_triplets(anchors, vectors)


def loop_memory(batch):
    masses = []
    for a, count in enumerate(COUNTS):
        for value in range(count):
            column = batch.prototypes[place(a, value)]
            masses.append(sum(column[other].abs().sum() for other in range(len(COUNTS)) if other != a))
    return sum(masses) / len(masses)


def tangent(part):
    """The gradient; that of vectors of length 1 without the part along them, which their normalisation removes."""
    if part.is_leaf:
        return part.grad
    return part.grad - (part.grad * part.detach()).sum(-1, keepdim=True) * part.detach()


LOOPS = {
    "classification": loop_classification,
    "local": loop_local,
    "smooth local": loop_smooth_local,
    "whole": loop_whole,
    "compositional": loop_compositional,
    "l1_consistency": loop_l1_consistency,
    "triplet_consistency": loop_triplet_consistency,
    "memory": loop_memory,
}


@pytest.mark.parametrize("missing", [0.0, 0.2])
@pytest.mark.parametrize("name", LOOPS)
def test_each_loss_is_that_of_a_plain_loop(name, missing):
    batch, again = make_batch(missing=missing), make_batch(missing=missing)
    temperature = TEMPERATURE if name == "smooth local" else None
    loss = vars(ManipulationLoss)[name.split()[-1]](make_loss(temperature=temperature), batch).loss
    expected = LOOPS[name](again)
    assert expected > 0
    torch.testing.assert_close(loss, expected, atol=1e-9, rtol=0)
    loss.backward()
    expected.backward()
    for part, other in zip(batch[:3], again[:3], strict=True):
        found, wanted = (torch.zeros_like(each) if each.grad is None else tangent(each) for each in (part, other))
        torch.testing.assert_close(found, wanted, atol=1e-9, rtol=0)


@pytest.mark.parametrize("consistency", ["l1", "triplet"])
def test_the_weighted_sum(consistency):
    batch = make_batch()
    weights = dict(zip(TERMS, [0.2, 0.3, 1.0, 2.0, 0.7, 0.4], strict=True))
    output = make_loss(weights=ManipulationWeights(**weights), consistency=consistency).compare(batch)
    names = [*TERMS[:4], f"{consistency}_consistency", "memory"]
    expected = sum(weight * LOOPS[name](batch) for name, weight in zip(names, weights.values(), strict=True))
    torch.testing.assert_close(output.loss, expected, atol=1e-9, rtol=0)
    assert {"loss_classification", "loss_colour", "loss_whole", "active_compositional", "loss_memory"} < set(
        output.logs
    )
    assert output.collapsed == 0
    torch.testing.assert_close(output.logs["loss_memory"], LOOPS["memory"](batch).detach())


def test_a_loss_with_weight_0_is_not_computed():
    output = make_loss(weights=ManipulationWeights(classification=0.2)).compare(make_batch())
    assert list(output.logs) == ["loss_classification"] and output.collapsed is None


def test_labels_that_are_missing_take_no_part():
    """Numbers of blocks without a label change nothing, nor does an image without labels."""
    first, other = make_batch(missing=0.4), make_batch(missing=0.4)
    unlabelled = first.labels < 0
    noise = torch.nn.functional.normalize(torch.randn(first.embeddings.shape, dtype=torch.float64), dim=-1)
    embeddings = torch.where(unlabelled[..., None], noise, other.embeddings)
    logits = torch.where(unlabelled[..., None], torch.full_like(other.logits, 7.0), other.logits)
    for consistency in ("l1", "triplet"):
        loss = make_loss(consistency=consistency)
        expected = loss.compare(first).loss
        # a prototype adds to blocks of other attributes, whose length then changes: only the blocks are compared
        found = loss.compare(other._replace(embeddings=embeddings, logits=logits)).loss
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)


def test_a_batch_without_any_label_has_no_loss_and_no_gradient():
    batch = make_batch()
    batch = batch._replace(labels=torch.full_like(batch.labels, -1))
    output = make_loss(weights=ManipulationWeights(1.0, 1.0, 1.0, 1.0, 1.0)).compare(batch)
    assert output.loss == 0 and math.isnan(output.logs["loss_whole"])
    output.loss.backward()
    assert not batch.embeddings.grad.any() and torch.isfinite(batch.prototypes.grad).all()


def test_equal_embeddings_have_collapsed():
    batch = make_batch()
    equal = batch._replace(embeddings=batch.embeddings[:1].expand(IMAGES, -1, -1))
    assert make_loss().compare(equal).collapsed == 1


def test_the_memory_of_prototypes_in_their_own_blocks_costs_nothing():
    loss = make_loss()
    batch = make_batch()
    own = batch.prototypes * loss.own[..., None]
    assert loss.memory(batch._replace(prototypes=own)).loss == 0
