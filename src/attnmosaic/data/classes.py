"""Which classes are foreground and which background. Light: checked before torch is imported."""

from collections.abc import Sequence

from attnmosaic.errors import UserError, nearest


def class_indices(wanted: Sequence[str | int], classes: Sequence[str], key: str) -> list[int]:
    """Turns class names or indices into indices.

    Args:
        wanted: names (str) or indices (int) of classes, in the order their labels are wanted.
        classes: every class of the data set, in index order.
        key: the config key they came from, for the error.

    Raises:
        UserError: a class is unknown or named twice.
    """
    indices = []
    for item in wanted:
        # `data.foreground=[7,8]` reaches us as ints; a class may also be *named* "7".
        if isinstance(item, int):
            if not 0 <= item < len(classes):
                raise UserError(f"{key}: got class index {item}, allowed: 0 to {len(classes) - 1}")
            if str(item) in classes and classes[item] != str(item):
                raise UserError(
                    f"{key}: {item} may be the class named '{item}' or the one at index {item}, '{classes[item]}'; "
                    f"name it: '{key}=[\"{item}\",...]'"
                )
            indices.append(item)
        elif item in classes:
            indices.append(list(classes).index(item))
        else:
            close = nearest(item, classes)
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            shown = ", ".join(classes[:20]) + (", ..." if len(classes) > 20 else "")
            raise UserError(f"{key}: got class '{item}', allowed: {shown}{hint}")
    if len(set(indices)) < len(indices):
        raise UserError(f"{key}: got {list(wanted)}, which names a class twice; name each once")
    return indices


def split_classes(
    foreground: Sequence[str | int], background: Sequence[str | int] | None, classes: Sequence[str]
) -> tuple[list[int], list[int]]:
    """Returns the indices of the foreground and of the background classes.

    Args:
        foreground: at least two classes; their order gives the labels 0, 1, ...
        background: classes, or None for every class that is not foreground.
        classes: every class of the data set, in index order.

    Raises:
        UserError: a class is unknown, either side is empty, or the two overlap.
    """
    front = class_indices(foreground, classes, "data.foreground")
    if len(front) < 2:
        raise UserError(
            f"data.foreground: got {list(foreground)}, needs at least two classes to tell apart; "
            f"type for example 'data.foreground=[{','.join(classes[:2])}]'"
        )
    if background is None:
        back = [i for i in range(len(classes)) if i not in front]
    else:
        back = class_indices(background, classes, "data.background")
    shared = [classes[i] for i in back if i in front]
    if shared:
        raise UserError(f"data.background: {', '.join(shared)} is also in data.foreground; a class is one or the other")
    if not back:
        raise UserError("data.background: got no class, needs at least one that is not in data.foreground")
    return front, back
