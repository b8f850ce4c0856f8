"""Nothing, for rooms that are not converted yet."""


class _CallStart:
    def pinned_folder(self, *_: object) -> None: ...
    def has_gone(self, *_: object) -> bool:
        return False

    def has_appeared(self, *_: object) -> bool:
        return False

    def hand_on(self) -> None: ...


def call_start() -> _CallStart:
    return _CallStart()
