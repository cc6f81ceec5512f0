"""Texts that tokenizers get wrong, and the `tokenizers` library's tokenizers that goldens and parity compare with."""

import json
import random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
# Not one of the three: runs through the regular-expression engine.
CUSTOM = r"[A-Za-z]+|\p{N}{1,2}|[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+|\p{L}"

def adversarial_texts():
    rng = random.Random(7)
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    texts = [
        "", " ", "  ", "\n", "\n\n", " \n", "\n ", "\t", "\r\n", "\r\n\r\n  x", " \u00a0 \u3000x", "\u180e", "a\u180eb", "\x85x",
        "a", "a b", " a", "a ", "a  ", "a  b", "a   b\n\n  c\n", "don't DON'T don\u2019t we'll WE'LL i'\u017f 'S's 'Re 'vE'LL'd",
        "'' ''s 's's '", "x=1234567890;y=12 345 6", "\u0661\u0662\u0663\u0664\u0665 \u00bd\u00b2\u2167", "!!!\n\n???\r\n  ...", "  !a !!b",
        "emoji \U0001F600\U0001F468\u200d\U0001F469\u200d\U0001F467\u200d\U0001F466 \U0001F1E9\U0001F1EA\U0001F3F3\ufe0f\u200d\U0001F308",
        "\u4f60\u597d\uff0c\u4e16\u754c\u3002\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8 \ud55c\uad6d\uc5b4", "\u1112\u1161\u11ab\u1100\u1173\u11af\u11a7 \uac00\u11a8\uac00\u11a7",
        "e\u0301 e\u0323\u0301 e\u0301\u0323 a\u0308\u0304 \u0041\u030a \u212b \u00c5", "\u0301\u0301x", "Z\u0351\u036b\u0343\u036a\u0302\u036b\u033d\u034f\u0334\u0319\u0324a\u0320l\u0321g\u0322o",
        "\u0928\u092e\u0938\u094d\u0924\u0947 \u0915\u093c \u0958 \u09af\u09bc", "\u05e9\u05b8\u05c1\u05dc\u05d5\u05b9\u05dd \ufb2c \u0627\u0644\u0633\u0644\u0627\u0645", "\ufb01\u01c4 \ufffd \ufeffbom \u0000nul",
        "<|endoftext|>", "a<|endoftext|>b", " <|endoftext|> ", "<|endoftext|", "<|endoftext|><|endoftext|>", "<|pad|>  <|pad|> x <|pad|>\n\n",
        "  <mask>  \n<mask>x x<mask> <mask>", "word <w> a<w> <w>b <w>", "caf\u00e9 cafe\u0301 normcafe\u0301tok", "tool_call tool_calls tool",
        "\U00010900\U0001D400\U000E0001\U0010FFFF\uffff\ue000", "a" * 5000, " " * 5000, "\n" * 3000 + " " * 3000, "ab" * 3000 + " ",
        "\u00e9" * 2000, "\U0001F600" * 1500, "1" * 1000, "." * 1000 + "\n" * 1000, "'" * 300 + "s" * 3, "x" + " " * 200 + "y" + "\t" * 50 + "z",
    ]
    for _ in range(300):  # any code point
        texts.append("".join(chr(rng.choice([rng.randrange(0x20, 0x7F), rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)]))
                             for _ in range(rng.randrange(1, 60))))
    marks = [c for c in range(0x300, 0x370)] + [0x323, 0x327, 0x328, 0x93C, 0x3099, 0x309A, 0x1161, 0x11A8, 0x11A7, 0x345, 0x5B8, 0x64B, 0x653]
    bases = [ord(c) for c in "aeiouAEIOUnsyzx 1!\n"] + [0x3B1, 0x3C9, 0x415, 0x1100, 0xAC00, 0xAC01, 0x304B, 0x30CF, 0x928, 0x627, 0x212B, 0x1E9B, 0xFB2C, 0x2126]
    for _ in range(400):  # combining marks in every order
        texts.append("".join(chr(rng.choice(rng.choice([marks, bases]))) for _ in range(rng.randrange(1, 40))))
    pieces = ["'s", "'T", " ", "  ", "\n", "\r\n", "\t", "a", "Zx", "\u00e9", "\u4e2d", "7", "42", "1000", ".", "--", "_", "<|endoftext|>", "<mask>",
              "<w>", "tool_call", "\u00a0", "\u2003", "\u0301", "\U0001F600", "\u200d", "cafe\u0301tok", "<|pad|>", "\u017f", "'"]
    for _ in range(800):
        texts.append("".join(rng.choice(pieces) for _ in range(rng.randrange(1, 40))))
    for _ in range(20):
        texts.append("".join(rng.choice(letters + "   \n.,()_'") for _ in range(20000)))
    return texts


def invalid_bytes():
    rng = random.Random(11)
    cases = [b"\xff", b"\xc3", b"a\xc3 b", b"\xe2\x82 x", b"\xf0\x9f\x98", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80", b"\xf8\x88\x80\x80\x80",
             b"\xe2\x28\xa1", b"ok \x80\x81 \xfe\xff ok", b"\xf0\x80\x80\x80", b"\xe0\x80\xaf", b"\xc3\xa9\xc3", b"\xf0\x9f\x98\x80\xf0\x9f"]
    for _ in range(200):
        cases.append(bytes(rng.choice([rng.randrange(256), rng.randrange(0x20, 0x7F), 0xE2, 0x82, 0xF0, 0x9F]) for _ in range(rng.randrange(1, 80))))
    return cases


ALPHABET = pre_tokenizers.ByteLevel.alphabet()


def train_peer(kind, texts, vocab_size, pattern=None):
    """The library's tokenizer of one of the three families, trained on `texts`."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=kind == "llama3"))
    if kind == "gpt2":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
        special = ["<|endoftext|>"]
    else:
        regex = pattern or (LLAMA3 if kind == "llama3" else QWEN2)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(regex), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ])
        special = ["<|begin_of_text|>", "<|end_of_text|>"] if kind == "llama3" else ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
        if kind == "qwen2":
            tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special, initial_alphabet=ALPHABET, min_frequency=2, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


# ---- the families beside those three, with the component settings of their published files

O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
).replace('\\"', '"')
BYTES = [f"<0x{b:02X}>" for b in range(256)]


def isolated(pattern):
    return pre_tokenizers.Split(Regex(pattern), behavior="isolated", invert=False)


def byte_level_peer(steps, special, texts, vocab_size, normalizer=None):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not steps)])
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=ALPHABET, min_frequency=2, show_progress=False))
    return tokenizer


def metaspace_bpe(texts, vocab_size, special, normalizer, pre_tokenizer, decoder, training_split=None):
    """BPE on characters with all bytes in the vocabulary, trained on words, used as the family does."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizer
    # Trained on words: else tokens would be whole sentences.
    tokenizer.pre_tokenizer = training_split or pre_tokenizers.Split("\u2581", "merged_with_next")
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=[*special, *BYTES], min_frequency=2, limit_alphabet=90, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    data = json.loads(tokenizer.to_str())
    # Bytes are ordinary tokens in the published files.
    data["added_tokens"] = [t for t in data["added_tokens"] if t["content"] in special]
    tokenizer = Tokenizer.from_str(json.dumps(data))
    if pre_tokenizer:
        tokenizer.pre_tokenizer = pre_tokenizer
    else:
        tokenizer = without_pre_tokenizer(tokenizer)
    tokenizer.decoder = decoder
    return tokenizer


def without_pre_tokenizer(tokenizer):
    data = json.loads(tokenizer.to_str())
    data["pre_tokenizer"] = None
    return Tokenizer.from_str(json.dumps(data))


def bos_template(tokenizer, bos="<s>"):
    return processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, tokenizer.token_to_id(bos))])


def families(texts, vocab_size):
    """Name and tokenizer of the other families."""
    metaspace_texts = [t.replace(" ", "\u2581") for t in texts]
    llama_decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    special = ["<unk>", "<s>", "</s>"]
    legacy = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    llama2 = metaspace_bpe(texts, vocab_size, special, legacy, None, llama_decoder)
    llama2.post_processor = bos_template(llama2)
    yield "llama2", llama2

    mistral = metaspace_bpe(metaspace_texts, vocab_size, special, normalizers.Sequence([]), None, llama_decoder)
    data = json.loads(mistral.to_str()) | {"normalizer": None}
    mistral = Tokenizer.from_str(json.dumps(data))
    mistral.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    mistral.add_special_tokens(["[INST]", "[/INST]"])
    mistral.post_processor = bos_template(mistral)
    yield "mistral", mistral

    phi3 = Tokenizer.from_str(llama2.to_str())
    phi3.add_special_tokens([AddedToken(t, rstrip=True, special=True) for t in ("<|endoftext|>", "<|assistant|>", "<|end|>")])
    phi3.add_tokens([AddedToken("</w>", rstrip=True, normalized=False)])
    yield "phi3", phi3

    gemma = metaspace_bpe(texts, vocab_size, ["<pad>", "<eos>", "<bos>", "<unk>"], normalizers.Replace(" ", "\u2581"),
                          pre_tokenizers.Split(" ", "merged_with_previous"),
                          decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]))
    gemma.add_tokens([AddedToken(t, normalized=False) for t in ("\n\n", "\n\n\n", "\u2581\u2581", "\u2581\u2581\u2581", "<table>")])
    gemma.add_special_tokens(["<start_of_turn>", "<end_of_turn>"])
    gemma.post_processor = bos_template(gemma, "<bos>")
    yield "gemma", gemma

    yield "neox", byte_level_peer([], ["<|endoftext|>", "<|padding|>"], texts, vocab_size, normalizers.NFC())
    olmo2 = byte_level_peer([isolated(LLAMA3)], ["<|endoftext|>"], texts, vocab_size)
    olmo2.add_special_tokens(["<|fim_prefix|>", "|||EMAIL_ADDRESS|||"])
    yield "olmo2", olmo2
    yield "glm4", byte_level_peer([isolated(LLAMA3)], ["<|endoftext|>", "[MASK]", "[gMASK]", "<sop>", "<|user|>"], texts, vocab_size)
    gpt_oss = byte_level_peer([isolated(O200K)], ["<|startoftext|>", "<|endoftext|>", "<|start|>", "<|channel|>"], texts, vocab_size)
    yield "gpt-oss", gpt_oss
    yield "tekken", byte_level_peer([isolated(TEKKEN)], ["<unk>", "<s>", "</s>", "[INST]"], texts, vocab_size)
    deepseek = byte_level_peer([isolated(r"\p{N}{1,3}"), isolated("[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"), isolated(DEEPSEEK3)],
                               ["<\uff5cbegin\u2581of\u2581sentence\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>"], texts, vocab_size)
    deepseek.add_tokens([AddedToken("<\uff5cUser\uff5c>", normalized=False), AddedToken("<think>", normalized=True)])
    deepseek.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False, add_prefix_space=True),
                                                   bos_template(deepseek, "<\uff5cbegin\u2581of\u2581sentence\uff5c>")])
    yield "deepseek3", deepseek

    # Unigram has every character in its vocabulary.
    characters = len(set("".join(texts)))
    if characters > 300:
        vocab_size = max(vocab_size, characters + 4000)
    t5 = Tokenizer(models.Unigram())
    t5.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")])
    t5.decoder = decoders.Metaspace(prepend_scheme="always")
    t5.train_from_iterator(texts, trainers.UnigramTrainer(vocab_size=vocab_size, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False))
    t5.post_processor = processors.TemplateProcessing(single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", t5.token_to_id("</s>"))])
    yield "t5", t5
    xlnet = Tokenizer(models.Unigram())
    xlnet.normalizer = normalizers.Sequence([normalizers.Replace("``", '"'), normalizers.Replace("''", '"'), normalizers.NFKD(),
                                             normalizers.StripAccents(), normalizers.Lowercase(), normalizers.Replace(Regex(" {2,}"), " ")])
    xlnet.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    xlnet.decoder = decoders.Metaspace()
    xlnet.train_from_iterator(texts, trainers.UnigramTrainer(
        vocab_size=vocab_size, special_tokens=["<unk>", "<s>", "</s>", "<cls>", "<sep>", "<mask>", *BYTES], unk_token="<unk>", show_progress=False))
    data = json.loads(xlnet.to_str())
    data["model"]["byte_fallback"] = True
    data["added_tokens"] = [t for t in data["added_tokens"] if not t["content"].startswith("<0x")]
    xlnet = Tokenizer.from_str(json.dumps(data))
    xlnet.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True)])
    yield "xlnet", xlnet

    bert = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=30))
    bert.normalizer = normalizers.BertNormalizer()
    bert.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    bert.decoder = decoders.WordPiece()
    bert.train_from_iterator(texts, trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], show_progress=False))
    bert.post_processor = processors.BertProcessing(("[SEP]", bert.token_to_id("[SEP]")), ("[CLS]", bert.token_to_id("[CLS]")))
    yield "bert", bert


def decoded(data):
    """Bytes as Python reads them where they are not valid UTF-8."""
    return data.decode("utf-8", errors="replace")


def variants(texts, vocab_size):
    """Name and tokenizer: the three families as people use them, and the options beside."""
    gpt2 = train_peer("gpt2", texts, vocab_size)
    yield "gpt2", gpt2
    llama3 = train_peer("llama3", texts, vocab_size)
    bos = llama3.token_to_id("<|begin_of_text|>")
    llama3.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single="<|begin_of_text|> $A", pair="<|begin_of_text|> $A <|begin_of_text|>:1 $B:1",
                                      special_tokens=[("<|begin_of_text|>", bos)]),
    ])
    yield "llama3", llama3
    qwen2 = train_peer("qwen2", texts, vocab_size)
    qwen2.add_tokens([AddedToken("tool_call", normalized=True), AddedToken("normcaf\u00e9tok", normalized=True)])
    yield "qwen2", qwen2
    added = Tokenizer.from_str(gpt2.to_str())
    added.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    added.post_processor = processors.ByteLevel(trim_offsets=True)
    added.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True), AddedToken("<|pad|>", rstrip=True, special=True)])
    added.add_tokens([AddedToken("<w>", single_word=True), AddedToken("tool_call"), AddedToken("tool_calls"), AddedToken("caf\u00e9"),
                      AddedToken("a b", normalized=False)])
    yield "added", added
    trimmed = Tokenizer.from_str(qwen2.to_str())
    trimmed.post_processor = processors.ByteLevel(trim_offsets=True, add_prefix_space=False)
    trimmed.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    trimmed.add_special_tokens([AddedToken("<mask>", lstrip=True, rstrip=True, normalized=True, special=True)])
    yield "digits", trimmed
    custom = train_peer("llama3", texts, vocab_size, CUSTOM)
    yield "custom", custom
    small = Tokenizer(models.BPE())
    small.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    small.decoder = decoders.ByteLevel()
    small.train_from_iterator(["abc abd abc"], trainers.BpeTrainer(vocab_size=20, show_progress=False))
    yield "few-bytes", small
