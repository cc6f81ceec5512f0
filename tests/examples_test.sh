#!/usr/bin/env bash
# The runs of examples/ and the commands of their README files, on a handful of small texts and for two steps.
set -uo pipefail
passed=0
failed=0

check() {
  local name=$1
  shift
  if "$@" >out.log 2>&1; then
    passed=$((passed + 1))
  else
    failed=$((failed + 1))
    printf 'FAILED %s: %s\n' "$name" "$*"
    tail -n 20 out.log
  fi
}
json() { python3 -c "import json, sys; value = json.load(open(sys.argv[1])); sys.exit(not ($2))" "$1"; }
examples=$TRIREME_SOURCE_DIR/examples
small=(--set batch.sequences=4 --set batch.micro=1 --set batch.lanes=4 --set schedule.steps=2 --set schedule.warmup=1
  --set data.seq_len=64 --set eval.every=0 --set log.trace_step=0 --set precision.recipe=fp32
  --set model.preset= --set model.config=tiny.json)
cat >tiny.json <<'EOF'
{"model_type": "llama", "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
 "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
 "tie_word_embeddings": true}
EOF

mkdir -p source text jsonl gpt2 web runs
for i in $(seq 60); do
  printf 'def function_%d(value):\n    """Adds %d."""\n    return value + %d\n' "$i" "$i" "$i" >source/f"$i".py
  printf 'The story of number %d, which is one more than %d and was written down here.\n' "$i" $((i - 1)) >text/s"$i".txt
  printf '{"text": "Line %d of a forum where people write about number %d."}\n' "$i" "$i" >>jsonl/forum.jsonl
  printf '{"text": "An article, number %d, about nothing in particular."}\n' "$i" >>jsonl/articles.jsonl
done
cp source/f1.py source/copy.py

check "corpus" "$TRIREME" data corpus --json --out corpus --vocab-size 300 --valid-fraction 0.1 source
check "corpus counts" json corpus/corpus.json "value['duplicates'] == 1 and value['files'] == 60 and value['bits_per_byte']['xz -9'] > 0"
check "default" "$TRIREME" train "$examples/default/run.toml" "${small[@]}"
check "default again says that it is done" "$TRIREME" train "$examples/default/run.toml" "${small[@]}"

small_moe=("${small[@]}" --set model.config=tiny_moe.json)
sed 's/"llama"/"mixtral"/; s/"num_hidden_layers"/"num_local_experts": 4, "num_experts_per_tok": 2, "num_hidden_layers"/' \
  tiny.json >tiny_moe.json
check "moe: dense" "$TRIREME" train "$examples/moe/dense.toml" "${small[@]}"
check "moe" "$TRIREME" train "$examples/moe/run.toml" "${small_moe[@]}"
check "moe: experts' figures" python3 -c '
import json
for line in open("runs/moe/metrics.jsonl"):
    m = json.loads(line)
    # 4 sequences of 64 tokens, two experts each, in two layers.
    assert [sum(load) for load in m["load"]] == [512, 512] and m["dropped"] == 0 and m["balance_loss"] > 0.5, m'
"$TRIREME" train "$examples/moe/run.toml" "${small_moe[@]}" --dry-run --json >moe.json 2>/dev/null
# Two of four experts of three matrices [128, 64] in two layers stay idle.
check "moe: active parameters" json moe.json "value['parameters'] - value['active_parameters'] == 2 * 2 * 3 * 128 * 64"
check "moe: the report compares" grep -q '"name":"runs/moe-dense"' runs/moe/report.html
check "moe: generate" "$TRIREME" generate runs/moe/export --prompt def

cat >tiny_deepseek.json <<'EOF'
{"model_type": "deepseek_v3", "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
 "num_attention_heads": 2, "q_lora_rank": 24, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8,
 "v_head_dim": 16, "first_k_dense_replace": 1, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
 "n_shared_experts": 1, "n_group": 2, "topk_group": 1, "num_nextn_predict_layers": 1, "max_position_embeddings": 256,
 "rms_norm_eps": 1e-6, "tie_word_embeddings": true}
EOF
small_deepseek=("${small[@]}" --set model.config=tiny_deepseek.json)
check "deepseek" "$TRIREME" train "$examples/deepseek/run.toml" "${small_deepseek[@]}"
check "deepseek: figures of the module and of all routers" python3 -c '
import json, math
for line in open("runs/deepseek/metrics.jsonl"):
    m = json.loads(line)
    # The second layer and the module have experts. An untrained model knows nothing of either token.
    assert [sum(load) for load in m["load"]] == [512, 512], m
    assert abs(m["mtp_loss"] - math.log(512)) < 1 and abs(m["loss"] - math.log(512)) < 1, m'
check "deepseek: the module is exported" grep -q "model.layers.2.eh_proj.weight" runs/deepseek/export/model.safetensors
check "deepseek: generate" "$TRIREME" generate runs/deepseek/export --prompt def
check "deepseek: the module is trained on" "$TRIREME" train "$examples/deepseek/run.toml" "${small[@]}" --set model.config= \
  --set model.init=runs/deepseek/export --set out=runs/deepseek-again
check "deepseek: without the module" "$TRIREME" train "$examples/deepseek/run.toml" "${small_deepseek[@]}" \
  --set loss.mtp_weight=0 --set out=runs/deepseek-without
check "deepseek: nothing of it is exported" json runs/deepseek-without/export/config.json "value['num_nextn_predict_layers'] == 0"
check "deepseek: the preset" "$TRIREME" train "$examples/deepseek/run.toml" --dry-run --set out=runs/deepseek-preset

check "text: tokenizer" "$TRIREME" tokenize train --vocab-size 400 --out runs/text-tokenizer.json 'text/**/*'
check "text" "$TRIREME" train "$examples/text/run.toml" "${small[@]}"
sed 's/"tie_word_embeddings": true/"tie_word_embeddings": false/' tiny.json >tiny_untied.json
small_pipeline=("${small[@]}" --set model.config=tiny_untied.json)
check "pipeline" "$TRIREME" launch --threads 4 -- train "$examples/pipeline/run.toml" "${small_pipeline[@]}"
check "pipeline: another layout" "$TRIREME" launch --threads 2 -- train "$examples/pipeline/run.toml" "${small_pipeline[@]}" \
  --set parallel.dp=1 --set parallel.schedule=zbv --set parallel.chunks=2 --set out=runs/pipeline-v
check "pipeline: one rank" "$TRIREME" train "$examples/pipeline/run.toml" "${small_pipeline[@]}" --set parallel.dp=1 --set parallel.pp=1 \
  --set out=runs/pipeline-one
check "experts" "$TRIREME" launch --threads 4 -- train "$examples/experts/run.toml" "${small_moe[@]}"
check "experts: one rank" "$TRIREME" train "$examples/experts/run.toml" "${small_moe[@]}" --set parallel.dp=1 --set parallel.ep=1 \
  --set out=runs/experts-one
check "experts: the same bits" cmp runs/experts/export/model.safetensors runs/experts-one/export/model.safetensors
check "pipeline: the same bits" cmp runs/pipeline/export/model.safetensors runs/pipeline-one/export/model.safetensors
check "pipeline: the same bits in a V" cmp runs/pipeline-v/export/model.safetensors runs/pipeline-one/export/model.safetensors
small_tensor=("${small_pipeline[@]}" --set data.valid_fraction=0.2 --set eval.every=1 --set checkpoint.every=1)
check "tensor" "$TRIREME" launch --threads 2 -- train "$examples/tensor/run.toml" "${small_tensor[@]}"
check "tensor: processes" "$TRIREME" launch --nproc 2 -- train "$examples/tensor/run.toml" "${small_tensor[@]}" --set out=runs/tensor-processes
check "tensor: with ZeRO" "$TRIREME" launch --threads 4 -- train "$examples/tensor/run.toml" "${small_tensor[@]}" --set parallel.dp=2 \
  --set parallel.zero=2 --set out=runs/tensor-zero
check "tensor: with a pipeline" "$TRIREME" launch --threads 4 -- train "$examples/tensor/run.toml" "${small_tensor[@]}" --set parallel.pp=2 \
  --set out=runs/tensor-pipeline
check "tensor: in turn" "$TRIREME" launch --threads 2 -- train "$examples/tensor/run.toml" "${small_tensor[@]}" --set parallel.in_turn=4 \
  --set out=runs/tensor-turns
for other in processes zero pipeline turns; do
  check "tensor: the same bits with $other" cmp runs/tensor/export/model.safetensors "runs/tensor-$other/export/model.safetensors"
done
check "tensor: one rank" "$TRIREME" train "$examples/tensor/run.toml" "${small_tensor[@]}" --set parallel.tp=1 --set out=runs/tensor-one
near='
import json, sys
runs = [[json.loads(line) for line in open(f"runs/{name}/metrics.jsonl")] for name in sys.argv[1:]]
assert [len(run) for run in runs] == [2, 2], runs
for one, other in zip(*runs):
    # Float32 sums of 128 products in another order, nine of them in a row.
    for key in ("loss", "grad_norm", "valid_loss"):
        assert abs(one[key] / other[key] - 1) < 2 * 128 * 9 * 2**-24, (key, one[key], other[key])'
check "tensor: close to one rank" python3 -c "$near" tensor tensor-one
# One rank goes on from the first checkpoint of two, and two from the one of one.
rm -rf runs/tensor/checkpoints/step-2 runs/tensor/export runs/tensor-one/checkpoints/step-2 runs/tensor-one/export
check "tensor: one rank goes on" "$TRIREME" train "$examples/tensor/run.toml" "${small_tensor[@]}" --set parallel.tp=1
check "tensor: two ranks go on" "$TRIREME" launch --threads 2 -- train "$examples/tensor/run.toml" "${small_tensor[@]}" --set out=runs/tensor-one
check "tensor: still close" python3 -c "$near" tensor tensor-one
small_context=("${small[@]}" --set model.config=tiny_untied.json)
check "context" "$TRIREME" launch --threads 4 -- train "$examples/context/run.toml" "${small_context[@]}"
check "context: another layout" "$TRIREME" launch --threads 2 -- train "$examples/context/run.toml" "${small_context[@]}" \
  --set parallel.dp=1 --set out=runs/context-pair
check "context: the same bits" cmp runs/context/export/model.safetensors runs/context-pair/export/model.safetensors
check "context: one rank" "$TRIREME" train "$examples/context/run.toml" "${small_context[@]}" --set parallel.dp=1 --set parallel.cp=1 \
  --set out=runs/context-one
check "context: the same losses but for rounding" python3 -c '
import json
for got, want in zip(open("runs/context/metrics.jsonl"), open("runs/context-one/metrics.jsonl")):
    got, want = json.loads(got)["loss"], json.loads(want)["loss"]
    assert abs(got - want) < 1e-5 * want, (got, want)'
check "text: generate" "$TRIREME" generate runs/text/export --prompt Once

check "jsonl: inspect" "$TRIREME" data inspect jsonl/forum.jsonl
mv jsonl/articles.jsonl jsonl/articles.1.jsonl
check "jsonl" "$TRIREME" train "$examples/jsonl/run.toml" "${small[@]}" \
  --set 'data.train=[{path="jsonl/articles*.jsonl",weight=3},{path="jsonl/forum.jsonl",weight=1}]' --set data.valid_fraction=0.2
check "jsonl: prepare" "$TRIREME" data prepare --tokenizer bytes --out data/articles --deduplicate 'jsonl/articles*.jsonl'

check "continue" "$TRIREME" train "$examples/continue/run.toml" "${small[@]}" --set model.config= --set data.valid_fraction=0.2
check "continue: eval" "$TRIREME" eval runs/continue/export --data source/f1.py
check "continue: from a checkpoint of one's own" "$TRIREME" train "$examples/continue/run.toml" "${small[@]}" --set model.config= \
  --set data.valid_fraction=0.2 --set model.init=runs/continue/checkpoints/step-2 --set out=runs/continued

mkdir -p chat
cp -r runs/text/export chat/model
check "chat: conversations" python3 "$examples/chat/make_conversations.py" chat/conversations.jsonl 100
cp "$examples/chat/plain.jinja" chat/model/chat_template.jinja
check "chat" "$TRIREME" train "$examples/chat/run.toml" "${small[@]}" --set batch.lanes=2 --set data.valid_fraction=0.2 --set model.config=
check "chat: the template goes with the model" cmp chat/model/chat_template.jinja runs/chat/export/chat_template.jinja
check "chat: prepare" "$TRIREME" data prepare --loss-mask answers --tokenizer chat/model --out chat/prepared chat/conversations.jsonl
check "chat: prepared" "$TRIREME" train "$examples/chat/run.toml" "${small[@]}" --set batch.lanes=2 --set model.config= \
  --set data.train=chat/prepared --set data.valid_fraction=0.2 --set out=runs/chat-prepared

cp runs/text-tokenizer.json gpt2/tokenizer.json
check "gpt2-124m: prepare" "$TRIREME" data prepare --tokenizer gpt2/tokenizer.json --out data/web --valid-fraction 0.1 'jsonl/*.jsonl'
check "gpt2-124m: inspect" "$TRIREME" data inspect data/web data/web-valid --tokenizer gpt2/tokenizer.json
check "gpt2-124m: dry run" "$TRIREME" train "$examples/gpt2-124m/run.toml" --dry-run --set model.vocab_size=50304

cp "$TRIREME_BUILD_DIR/tests/my_rms_norm.so" .
check "kernel" "$TRIREME" train "$examples/kernel/run.toml" "${small[@]}" --set 'data.train=["text/*.txt"]'
check "kernel: the run says which" grep -q '"rms_norm" = "my_rms_norm"' runs/kernel/run.toml

printf '%d passed, %d failed\n' "$passed" "$failed"
[ "$failed" -eq 0 ]
