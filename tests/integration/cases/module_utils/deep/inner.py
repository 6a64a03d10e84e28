calls = []  # a second run in the same interpreter would see two


def answer():
    return 42
