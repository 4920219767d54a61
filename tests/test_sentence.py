"""Sentence encoders: fed with a prompt's embeddings they give what the library gives for its text."""

from __future__ import annotations

import builtins
import copy

import pytest
import torch
import torch.nn.functional as F
from inputs import refused

import pez_fast
from pez_fast.models import SentenceEncoder

pytest.importorskip("sentence_transformers")
from test_vocabulary import byte_level, gemma, unigram, wordpiece  # noqa: E402

TEXTS = ["the cat of the house", "a red dog", "do not", "the cat of a blue house and the red dogs, not a cat"]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE)
SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def bert(size, **sizes):
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig(vocab_size=size, max_position_embeddings=48, **{**SIZE, **sizes}))


def roberta(kind):
    def build(size):
        import transformers

        config = getattr(transformers, f"{kind}Config")(
            vocab_size=size, max_position_embeddings=50, type_vocab_size=1, **SIZE
        )
        return getattr(transformers, f"{kind}Model")(config)

    return build


def t5(size):
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(vocab_size=size, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, pad_token_id=1)
    )


def qwen(size):
    from transformers import Qwen3Config, Qwen3Model

    return Qwen3Model(
        Qwen3Config(vocab_size=size, max_position_embeddings=48, head_dim=16, num_key_value_heads=2, **SIZE)
    )


MODELS = {  # name: (tokenizer, transformer, pooling, width of a Dense module, Normalize)
    "bert, mean": (wordpiece, bert, "mean", None, False),
    "bert, cls, dense, normalize": (wordpiece, bert, "cls", 24, True),
    "bert, max, normalize": (wordpiece, bert, "max", None, True),
    "bert, mean, dense": (wordpiece, bert, "mean", 24, False),
    "xlm-roberta, mean, normalize": (unigram, roberta("XLMRoberta"), "mean", None, True),
    "roberta, last token": (byte_level, roberta("Roberta"), "lasttoken", None, False),
    "t5, mean, dense, normalize": (lambda: unigram(""), t5, "mean", 24, True),
    "qwen, last token, normalize": (gemma, qwen, "lasttoken", None, True),
}


def save(folder, tokenizer, transformer, pooling, dense, normalize, **more):
    """A model of the library with random weights, written to a folder."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Dense, Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    torch.manual_seed(0)
    tokenizer = tokenizer()
    model = transformer(len(tokenizer))
    with torch.no_grad():  # spread out, so that prompts differ from one another as much as a trained model's
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.copy_(0.25 * torch.randn(weight.shape))
        model.get_input_embeddings().weight.mul_(4)
    tokenizer.save_pretrained(folder / "parts")
    model.save_pretrained(folder / "parts")
    modules = [Transformer(str(folder / "parts"))]
    width = modules[0].get_embedding_dimension()
    modules.append(Pooling(width, pooling))
    modules += [Dense(width, dense)] if dense else []
    modules += [Normalize()] if normalize else []
    SentenceTransformer(modules=modules, device="cpu", **more).save(str(folder / "model"))
    return str(folder / "model")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: save(tmp_path_factory.mktemp("sentence"), *parts) for name, parts in MODELS.items()}


@pytest.fixture(scope="module")
def load(folders):
    """A model by name and dtype, read from its folder once."""
    loaded = {}

    def get(name, dtype=torch.float32):
        if (name, dtype) not in loaded:
            loaded[name, dtype] = pez_fast.load_sentence_encoder(folders[name], device="cpu", dtype=dtype)
        return loaded[name, dtype]

    return get


def some_ids(encoder, rows, length, seed=2):
    stable = torch.tensor(encoder.vocabulary.stable())
    return stable[torch.randint(len(stable), (rows, length), generator=torch.Generator().manual_seed(seed))]


def library(encoder, texts):
    """What the library itself gives for texts, padded to the longest."""
    return encoder.model.encode(list(texts), convert_to_tensor=True, normalize_embeddings=True).clone()


@pytest.mark.parametrize("name", MODELS)
@DTYPES
@pytest.mark.parametrize(("prefix", "suffix"), [("", ""), ("a red", "house"), ("The cat,", "!")])
def test_embeddings_give_what_the_text_gives(load, name, dtype, prefix, suffix):
    encoder = load(name, dtype)
    bound, ids = encoder.bind(5, prefix, suffix), some_ids(encoder, 6, 5)
    found = bound(encoder.table().weight[ids], ids)["features"]
    texts = [bound.text(row) for row in ids.tolist()]
    assert all(text.strip().startswith(prefix) and text.endswith(suffix) for text in texts)
    for other in (bound.from_text(texts)["features"], library(encoder, texts)):
        torch.testing.assert_close(found, other, rtol=0, atol=TOLERANCE[dtype])
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(6, dtype=dtype))
    assert found.dtype == dtype and (found[0] - found[1]).abs().max() > 0.01


@pytest.mark.parametrize("name", MODELS)
@DTYPES
def test_texts_are_encoded_as_the_library_does(load, name, dtype):
    encoder = load(name, dtype)
    together = encoder.encode_texts(TEXTS)
    torch.testing.assert_close(together, library(encoder, TEXTS), rtol=0, atol=TOLERANCE[dtype])
    many = encoder.encode_texts([*TEXTS, "a cat", *TEXTS[::-1], "the dog", "a dog", "of cats"])
    for k, text in enumerate(TEXTS):
        assert torch.equal(encoder.encode_texts([text])[0], together[k]) and torch.equal(many[k], together[k])
        assert torch.equal(many[8 - k], together[k])


def over_the_whole_context(bound, length=48):
    """The same bound model over padding up to its context, masked as the library does."""
    padded, more = copy.copy(bound), length - bound.template["input_ids"].shape[1]
    fill = {"input_ids": bound.encoder.model.tokenizer.pad_token_id}
    padded.template = {
        name: F.pad(value, (0, more), value=fill.get(name, 0)) if isinstance(value, torch.Tensor) else value
        for name, value in bound.template.items()
    }
    return padded


@pytest.mark.parametrize("name", MODELS)
def test_gradient_is_that_of_the_whole_context(load, name):
    encoder = load(name, torch.float64)
    ids = some_ids(encoder, 3, 4)
    hard = encoder.table().weight[ids].clone().requires_grad_()
    bound = encoder.bind(4, "a red", "house")
    found, full = bound(hard, ids)["features"], over_the_whole_context(bound)(hard, ids)["features"]
    torch.testing.assert_close(found, full, rtol=0, atol=1e-12)
    goal = torch.randn(found.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (ours,), (whole,) = (torch.autograd.grad((out @ goal).sum(), hard) for out in (found, full))
    torch.testing.assert_close(ours, whole, rtol=1e-9, atol=1e-12)
    assert (ours.abs().amax(-1) > 0).all()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("prompt_len", [1, 6, 16])
@DTYPES
def test_a_row_does_not_depend_on_the_batch(load, name, prompt_len, dtype):
    encoder = load(name, dtype)
    bound, ids = encoder.bind(prompt_len), some_ids(encoder, 17, prompt_len)
    hard = encoder.table().weight[ids].clone().requires_grad_()
    together = bound(hard, ids)["features"]
    together[:, :3].sum().backward()
    for rows in (1, 2, 3, 5, 7, 8, 13):
        few = hard[:rows].detach().requires_grad_()
        alone = bound(few, ids[:rows])["features"]
        alone[:, :3].sum().backward()
        assert torch.equal(together[:rows], alone) and torch.equal(hard.grad[:rows], few.grad)


def test_a_row_does_not_depend_on_the_batch_at_a_real_width(tmp_path):
    def wide(size):
        return bert(size, hidden_size=384, num_attention_heads=12, intermediate_size=1536, num_hidden_layers=1)

    encoder = pez_fast.load_sentence_encoder(save(tmp_path, wordpiece, wide, "mean", 256, True), device="cpu")
    for dtype in (torch.float32, torch.bfloat16):
        bound, ids = encoder.bind(14, dtype=dtype), some_ids(encoder, 17, 14)
        hard = encoder.table().weight[ids].clone().requires_grad_()
        together = bound(hard, ids)["features"]
        together[:, :3].sum().backward()
        for rows in (1, 3, 4, 8, 11):
            few = hard[:rows].detach().requires_grad_()
            alone = bound(few, ids[:rows])["features"]
            alone[:, :3].sum().backward()
            assert torch.equal(together[:rows], alone) and torch.equal(hard.grad[:rows], few.grad)


@pytest.mark.parametrize("name", ["bert, mean", "roberta, last token", "qwen, last token, normalize"])
def test_another_dtype_is_a_copy(load, name):
    encoder = load(name)
    bound, ids = encoder.bind(4, dtype=torch.bfloat16), some_ids(encoder, 3, 4)
    assert bound.part is not encoder.model and encoder.dtype == torch.float32
    assert bound.part is encoder.bind(5, dtype=torch.bfloat16).part
    assert {p.dtype for p in bound.part.parameters()} == {torch.bfloat16}
    hard = encoder.table().weight[ids]
    found, exact = bound(hard, ids)["features"], encoder.bind(4)(hard, ids)["features"]
    assert found.dtype == torch.float32 and 0 < (found - exact).abs().max() < 0.05
    assert all(b.dtype == torch.float32 for n, b in bound.part.named_buffers() if n.endswith("inv_freq"))


@pytest.mark.parametrize("name", ["bert, mean", "xlm-roberta, mean, normalize", "roberta, last token"])
def test_distill_moves_the_way_the_signs_say(load, name):
    encoder, texts = load(name), [TEXTS[3], "red dogs of the house"]
    options = {"prompt_len": 4, "steps": 60, "restarts": 2, "seed": 3}
    near = {sign: pez_fast.distill(texts, encoder, weights=[sign, -sign], **options) for sign in (1, -1)}
    first, second = encoder.encode_texts(texts)
    for sign, result in near.items():
        (found,) = encoder.encode_texts([result.prompt])
        assert float(found @ (first - second)) * sign > 0.1
        assert result.text_score == pytest.approx(float(found @ (first - second)) * sign / 2, abs=1e-6)
        assert result.ids_score == pytest.approx(result.text_score, abs=1e-5)
        assert encoder.vocabulary.encode(result.prompt) == result.ids


def test_distill_shortens_one_text_and_several(load):
    encoder = load("bert, cls, dense, normalize")
    one = pez_fast.distill(TEXTS[3], encoder, ratio=0.4, steps=40)
    assert len(one.ids) == round(0.4 * len(encoder.vocabulary.encode(TEXTS[3]))) and one.text_score > 0.5
    several = pez_fast.distill(TEXTS, encoder, ratio=0.4, steps=40, weights=[1, 1, -0.5, 0.5], prefix="a red", refine=4)
    assert several.prompt.startswith("a red ") and several.ids_score == pytest.approx(several.text_score, abs=1e-5)
    with pytest.warns(UserWarning, match="the model reads the first 46 of the"):
        pez_fast.distill("the cat of the house " * 20, encoder, prompt_len=3, steps=1)


def test_the_models_own_prompt_is_put_before_every_text(tmp_path):
    parts = MODELS["bert, mean"]
    prompts = {"prompts": {"find": "the blue dog: ", "none": ""}, "default_prompt_name": "find"}
    prompted = pez_fast.load_sentence_encoder(save(tmp_path, *parts, **prompts), "cpu", torch.float64)
    plain = SentenceEncoder(copy.deepcopy(prompted.model))
    plain.model.default_prompt_name, plain.prompt = None, ""
    bound, ids = prompted.bind(4, "a"), some_ids(prompted, 3, 4)
    texts = [bound.text(row) for row in ids.tolist()]
    found = bound(prompted.table().weight[ids], ids)["features"]
    assert all(text.startswith("a ") for text in texts)
    for other in (
        prompted.encode_texts(texts),
        library(prompted, texts),
        plain.encode_texts([f"the blue dog: {text}" for text in texts]),
    ):
        torch.testing.assert_close(found, other, rtol=0, atol=1e-12)
    assert (found - plain.encode_texts(texts)).abs().max() > 0.01
    assert prompted.fingerprint() != plain.fingerprint()
    own = len(prompted.vocabulary.encode("the blue dog: "))
    with refused(ValueError, f"prompt_len must be at most {46 - own}: the context has 48 places and {2 + own} are"):
        prompted.bind(48)


def test_prompts_left_out_of_the_pooling_are_left_out(tmp_path):
    prompts = {"prompts": {"find": "the blue dog: "}, "default_prompt_name": "find"}
    encoder = pez_fast.load_sentence_encoder(save(tmp_path, *MODELS["bert, mean"], **prompts), "cpu", torch.float64)
    bound, ids = encoder.bind(4), some_ids(encoder, 3, 4)
    before = bound(encoder.table().weight[ids], ids)["features"]
    encoder.model.set_pooling_include_prompt(False)
    bound = encoder.bind(4)
    found, texts = bound(encoder.table().weight[ids], ids)["features"], [bound.text(row) for row in ids.tolist()]
    torch.testing.assert_close(found, library(encoder, texts), rtol=0, atol=1e-12)
    assert (found - before).abs().max() > 0.01


def test_features_are_cut_as_the_model_says(load):
    encoder = SentenceEncoder(copy.deepcopy(load("bert, mean", torch.float64).model))
    encoder.model.truncate_dim = 8
    ids = some_ids(encoder, 2, 3)
    bound = encoder.bind(3)
    found = bound(encoder.table().weight[ids], ids)["features"]
    assert found.shape == (2, 8)
    torch.testing.assert_close(found, library(encoder, map(bound.text, ids.tolist())), rtol=0, atol=1e-12)


def test_the_fingerprint_is_of_what_decides(folders):
    def load(name="bert, mean", dtype=torch.float32):
        return pez_fast.load_sentence_encoder(folders[name], "cpu", dtype)

    encoder, first = load(), load().fingerprint()
    assert encoder.fingerprint() == first == SentenceEncoder(encoder.model, "another name").fingerprint()
    encoder.encode_texts(TEXTS)
    encoder.model.tokenizer(TEXTS, padding="max_length", truncation=True, max_length=9)
    assert encoder.fingerprint() == first  # padding and truncation of the last call are no part of it
    assert all(isinstance(value, str) for value in first.values())
    for other in (load(dtype=torch.float64), load("bert, mean, dense"), load("bert, max, normalize")):
        assert other.fingerprint() != first
    with torch.no_grad():
        encoder.embedding.weight[7, 0] += 1
    changed = encoder.fingerprint()
    assert {name for name in first if changed[name] != first[name]} == {"model's weights"}
    shorter = load()
    shorter.model.max_seq_length = 20
    assert shorter.fingerprint() != first and shorter.context_length == 20


def test_parts_that_do_what_the_library_does(load):
    """A model that is no SentenceTransformer: a module with a tokenizer and `tokenize`."""
    whole = load("bert, mean", torch.float64).model

    class Parts(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.tokenizer, self.max_seq_length = whole, whole.tokenizer, 40

        def tokenize(self, texts):
            return dict(self.tokenizer(texts, return_tensors="pt"))

        def forward(self, features):
            return self.inner(features)

    encoder = SentenceEncoder(Parts())
    ids, bound = some_ids(encoder, 2, 3), encoder.bind(3)
    found = bound(encoder.table().weight[ids], ids)["features"]
    assert (
        encoder.context_length == 40 and encoder.name == "custom" and repr(encoder).startswith("SentenceEncoder('cus")
    )
    torch.testing.assert_close(found, encoder.encode_texts([bound.text(i) for i in ids.tolist()]), rtol=0, atol=1e-12)


def test_a_model_that_looks_at_ids_is_refused(load):
    model = copy.deepcopy(load("bert, mean").model)
    inner, forward = model[0], model[0].forward
    ids_too = torch.nn.Embedding(len(model.tokenizer), 32)

    def with_ids(features, **more):
        features = forward(features, **more)
        features["token_embeddings"] = features["token_embeddings"] + ids_too(features["input_ids"])
        return features

    inner.forward = with_ids
    with refused(ValueError, "model looks at ids beside their embeddings"):
        SentenceEncoder(model).bind(3)


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda e: e.bind(0), ValueError, "prompt_len must be a positive integer; got 0"),
        (lambda e: e.bind(47), ValueError, "prompt_len must be at most 46: the context has 48 places and 2 are taken; got 47"),
        (lambda e: e.bind(45, "a red", "house"), ValueError, "prompt_len must be at most 43"),
        (lambda e: e.table("half"), ValueError, "vocabulary must be 'stable' or 'full'; got 'half'"),
        (lambda e: pez_fast.invert("cat.png", e), TypeError, "model must .* have encode_images; got SentenceEncoder"),
        (lambda e: pez_fast.invert_batch(["cat.png"], e), TypeError, "encode_pixels, preprocess; got SentenceEncoder"),
        (lambda e: SentenceEncoder(torch.nn.Linear(2, 2)), TypeError, "have tokenizer, preprocess; got Linear"),
        (lambda e: pez_fast.load_sentence_encoder("/no/folder"), ValueError, "name='/no/folder' could not be downloaded or"),
        (lambda e: pez_fast.load_sentence_encoder("nobody/nothing"), ValueError, "name='nobody/nothing' could not be"),
    ],
)  # fmt: skip
def test_refusals_are_one_sentence(load, call, error, sentence):
    with pytest.raises(error, match=sentence) as caught:
        call(load("bert, mean"))
    assert "\n" not in str(caught.value)


def test_the_longest_prompt_fits(load):
    encoder = load("roberta, last token")
    assert encoder.bind(46).template["input_ids"].shape == (1, 48)


def test_models_that_cannot_be_fed_are_refused(tmp_path, load):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Router
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    static = StaticEmbedding(wordpiece().backend_tokenizer, embedding_dim=8)
    with refused(ValueError, "model has no token embedding that can be fed: it begins with StaticEmbedding"):
        SentenceEncoder(SentenceTransformer(modules=[static], device="cpu"))
    SentenceTransformer(modules=[static], device="cpu").save(str(tmp_path))
    with refused(ValueError, f"name={str(tmp_path)!r} cannot be used: model has no token embedding"):
        pez_fast.load_sentence_encoder(str(tmp_path))
    router = Router.for_query_document(query_modules=[static], document_modules=[load("bert, mean").model[0]])
    with refused(ValueError, "model has several routes"):
        SentenceEncoder(SentenceTransformer(modules=[router], device="cpu"))


def test_a_folder_without_a_model_says_so(tmp_path):
    with refused(ValueError, f"name={str(tmp_path)!r} holds no modules.json"):
        pez_fast.load_sentence_encoder(str(tmp_path))
    (tmp_path / "modules.json").write_text("no json")
    with refused(ValueError, f"name={str(tmp_path)!r} could not be downloaded or read"):
        pez_fast.load_sentence_encoder(str(tmp_path))


def test_a_missing_package_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **more):
        if name == "sentence_transformers":
            raise ModuleNotFoundError("No module named 'sentence_transformers'")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'pez_fast\[sentence\]'"):
        pez_fast.load_sentence_encoder("any")


def test_loading_prints_nothing(folders, capfd):
    pez_fast.load_sentence_encoder(folders["bert, mean"], device="cpu")
    assert capfd.readouterr() == ("", "")
