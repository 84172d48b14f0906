"""Problem set 3, the inner loop: your answers. What each function does: handout.md.

Shape letters: B rows, T tokens, C channels, V vocabulary, K students, R LoRA rank.
A document is a dict {"ids": [4, 7, 7], "weights": [0.0, 1.0, 0.5]}: two lists of one length.
"""

from torch import Tensor


def pack(documents: list[dict], row_tokens: int) -> tuple[list[list[int]], Tensor, Tensor, Tensor]:
    """Problem 3.1. Documents into rows.

    Returns rows, ids, docs, positions. rows: for each row the indices of its documents.
    ids, docs, positions: (B, T) int64 each, T the number of tokens of the longest row.

    Example: documents with ids [5, 6, 7], [8], [9, 9] and row_tokens 4 give
        rows [[0, 1], [2]]
        ids [[5, 6, 7, 8], [9, 9, 0, 0]]
        docs [[0, 0, 0, 1], [0, 0, -1, -1]]
        positions [[0, 1, 2, 0], [0, 1, 0, 0]]
    """
    raise NotImplementedError("Problem 3.1: pack the documents into rows")


def label(documents: list[dict], rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Problem 3.2. What each place of a row has to predict, and how much that counts.

    rows: as pack() returns them; a row may be empty. Returns targets (B, T) int64 and
    weights (B, T) floating point, T the number of tokens of the longest row.

    Example: documents with ids [5, 6, 7], [8], [9, 9] and weights [1, 0, 2], [1], [0, 0.5], and
    rows [[0, 1], [2]] give
        targets [[-1, 7, -1, -1], [9, -1, -1, -1]]
        weights [[0, 2, 0, 0], [0.5, 0, 0, 0]]
    """
    raise NotImplementedError("Problem 3.2: targets and weights of rows")


def losses(logits: Tensor, targets: Tensor, weights: Tensor, K: int) -> Tensor:
    """Problem 3.3. The loss of each of K students.

    logits (K b, T, V), targets and weights (K b, T): rows k b ... (k+1) b - 1 are student k's.
    Returns (K,).

    Example: K = 1, b = 1, V = 2, all logits 0, targets [[1, 0, -1]], weights [[1, 3, 0]]: each
    token's loss is ln 2, the student's (1 ln 2 + 3 ln 2) / 2 = 1.3863.
    """
    raise NotImplementedError("Problem 3.3: the loss of each student")


def gradient(logits: Tensor, targets: Tensor, weights: Tensor, K: int) -> Tensor:
    """Problem 3.4. The gradient of losses(...).sum() with respect to the logits, by hand.

    Arguments as in 3.3. Returns (K b, T, V).

    Example: the one of 3.3 gives [[[0.25, -0.25], [-0.75, 0.75], [0, 0]]].
    """
    raise NotImplementedError("Problem 3.4: the gradient with respect to the logits")


def train(
    documents: list[dict],
    row_tokens: int,
    E: Tensor,
    P: Tensor,
    W: Tensor,
    A: Tensor,
    B: Tensor,
    scale: float,
    rates: list[float],
) -> tuple[list[float], Tensor, Tensor]:
    """Problem 3.5. One self-edit into one adapter.

    E (V, C), P (n, C), W (V, C): the frozen model. A (R, C), B (V, R): the adapter to start from.
    rates: the learning rate of each step. Returns the losses, a list as long as rates, and the
    trained A (R, C) and B (V, R).
    """
    raise NotImplementedError("Problem 3.5: train an adapter on a self-edit")


def train_all(
    edits: list[dict],
    row_tokens: int,
    E: Tensor,
    P: Tensor,
    W: Tensor,
    A: Tensor,
    B: Tensor,
    scale: float,
) -> tuple[list[list[float]], Tensor, Tensor, list[str]]:
    """Problem 3.6. K self-edits into K adapters, some of which may fail.

    edits[k]: {"documents": [...], "rates": [...]}, student k's. A (R, C), B (V, R): where each
    student starts. Returns the losses of each student (K lists), A (K, R, C), B (K, V, R), and for
    each student why it failed ("" if it did not).
    """
    raise NotImplementedError("Problem 3.6: K students, some of which fail")
