"""Train all weights, the head alone or BayesTune's few, and keep them in a file."""

import math

import keras

import keras_bayestune as kbt


def epochs_of(steps, args):
    """Return epochs of at most `--steps-per-epoch` that have `steps` in all."""
    epochs = math.ceil(steps / args.steps_per_epoch)
    return {"epochs": epochs, "steps_per_epoch": math.ceil(steps / epochs)}


def tune_all(model, train, goal, args):
    """Return the number of trained scalars and the file with their values."""
    model.compile(keras.optimizers.Adam(args.learning_rate or 1e-4), **goal)
    backup = args.backup_dir
    callbacks = [keras.callbacks.BackupAndRestore(backup)] if backup else []
    epochs = epochs_of(args.finetune_steps, args)
    model.fit(train, **epochs, callbacks=callbacks, shuffle=False)
    file = args.out / "model.weights.h5"
    model.save_weights(file)
    return sum(math.prod(v.shape) for v in model.trainable_variables), file


def tune_head(model, train, goal, args):
    """Train what lies outside the backbone: what the others must beat."""
    model.backbone.trainable = False
    args.learning_rate = args.learning_rate or 1e-3
    return tune_all(model, train, goal, args)


def tune_few(model, train, goal, args):
    """Return the number of trained scalars and the file with their values."""
    steps = args.selection_steps
    sampler = kbt.BayesTuneSGLD(
        args.selection_learning_rate,
        warmup_steps=steps // 4,
        burn_in_steps=steps // 2,
        thinning=max(1, steps // 80),
        seed=args.seed,
    )
    select = kbt.SparseMaskCallback(
        fraction=args.fraction,
        selection_steps=steps,
        finetune_optimizer=keras.optimizers.Adam(args.learning_rate or 1e-3),
        backup_dir=args.backup_dir,
    )
    model.compile(sampler, **goal)
    epochs = epochs_of(steps + args.finetune_steps, args)
    model.fit(train, **epochs, callbacks=[select], shuffle=False)
    select.mask.summary()
    select.mask.save(args.out / "mask.safetensors")
    scales = kbt.plot_scales(
        select.scores, select.mask, without_gradient=select.health.without_gradient
    )
    scales.figure.savefig(args.out / "scales.png")
    kbt.plot_mask(select.mask).figure.savefig(args.out / "mask.png")
    file = args.out / "delta.safetensors"
    select.delta.save(file)
    return select.mask.count, file


METHODS = {"bayestune": tune_few, "full": tune_all, "head": tune_head}
