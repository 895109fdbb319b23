def complete(data):
    return dict(data)


def from_config(data):
    return data
