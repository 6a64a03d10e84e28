def length(word):
    return len(word)
