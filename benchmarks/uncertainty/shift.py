"""Test data as they come in use: turned, noisy, with words gone, or of another kind."""

import numpy as np
import scipy.ndimage


def turned(images, degrees):
    """Return images turned about their middle."""
    found = scipy.ndimage.rotate(
        images, degrees, axes=(1, 2), reshape=False, order=1, mode="nearest"
    )
    return np.ascontiguousarray(found, "float32")


def enlarged(images, factor):
    """Return images that are so many times as wide and as high."""
    return scipy.ndimage.zoom(images, (1, factor, factor, 1), order=1)


def noisy(images, deviation, seed=0):
    """Return images with Gaussian noise, in units of the range of a pixel."""
    noise = np.random.default_rng(seed).normal(0, deviation, images.shape)
    return np.clip(images + noise, 0, 1).astype("float32")


def scrambled(images, seed=0):
    """Return images whose pixels are in another order, in each image another one."""
    generator = np.random.default_rng(seed)
    flat = images.reshape(len(images), -1)
    return np.stack([generator.permutation(x) for x in flat]).reshape(images.shape)


def words_gone(tokens, fraction, seed=0):
    """Return BERT's tokens of which a fraction of the words is the unknown word."""
    generator = np.random.default_rng(seed)
    ids = np.array(tokens["token_ids"])
    is_word = ids > 103  # below: padding, unknown, class, separator, mask
    gone = is_word & (generator.random(ids.shape) < fraction)
    return {**tokens, "token_ids": np.where(gone, 100, ids)}
