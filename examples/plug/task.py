"""A task of your own: images and labels as arrays; splits, normalisation and augmentation come with it."""

import numpy as np

import nas


def stripes(count: int = 600, side: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Upright, level and slanting stripes under noise."""
    draw = np.random.default_rng(0)
    y = draw.integers(3, size=count)
    rows, columns = np.mgrid[:side, :side]
    waves = np.stack([np.sin(columns), np.sin(rows), np.sin(rows + columns)])
    x = 128 + 60 * waves[y] + 40 * draw.standard_normal((count, side, side))
    return x.clip(0, 255).astype(np.uint8), y


if __name__ == "__main__":
    x, y = stripes()
    task = nas.task_from_arrays(x, y, name="stripes", classes=["upright", "level", "slanting"], flip=False)
    small = {"trials": 3, "epochs": 1, "top_k": 1, "baselines": False, "retrain": {"epochs": 20}}
    result = nas.search("toy", task, "random", out="results/plug-task", settings=small)
    print(
        "test accuracy",
        result.metrics["test_acc"],
        "first image",
        task.classes[int(result.predict(x[:1])[0])],
    )
