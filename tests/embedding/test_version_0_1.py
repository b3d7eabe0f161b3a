"""Shards and indexes of version 0.1, whose fingerprint of a model left out its architecture."""

from cca_hf import AttributeIndex, CCAModel
from cca_hf.embedding.catalogue import Catalogue
from cca_hf.embedding.job import EmbeddingSettings, embed_catalogue


def test_its_fingerprint_is_accepted(model, pictures, tmp_path, monkeypatch):
    catalogue = Catalogue.from_folder(pictures)
    with monkeypatch.context() as version_0_1:
        version_0_1.setattr(CCAModel, "fingerprint", CCAModel._fingerprint_of_version_0_1)
        embed_catalogue(model, catalogue, tmp_path / "shards", EmbeddingSettings(shard_size=32), show_progress=False)
        AttributeIndex.create(tmp_path / "index", model).close()
    (tmp_path / "shards" / "embeddings-00001-of-00002.parquet").unlink()
    manifest = (tmp_path / "shards" / "manifest.json").read_text()
    embed_catalogue(model, catalogue, tmp_path / "shards", EmbeddingSettings(shard_size=32), show_progress=False)
    assert len(list((tmp_path / "shards").glob("*.parquet"))) == 2
    assert (tmp_path / "shards" / "manifest.json").read_text() == manifest
    AttributeIndex.open(tmp_path / "index", model).close()
