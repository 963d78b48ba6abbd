"""A login that a framework keeps in the session, told to the session."""

from __future__ import annotations

from typing import Any

from tieredsession.session import Session, SessionIO


class LoginSession(Session):
    """A session in which a framework keeps who has logged in, under a key of its own.

    Its login gives the session a new id and binds it to that user, if the application does
    not bind it itself; after its logout it is nobody's. What the session holds stays, as there.
    """

    __slots__ = ("_former",)

    _login_key: str

    def __init__(self, io: SessionIO, cookie_header: str | None) -> None:
        super().__init__(io, cookie_header)
        # Whose it was before this request's login bound it, in a tuple; empty without one.
        self._former: tuple[str | None, ...] = ()

    def bind(self, principal: str | None, *, device: str | None = None) -> None:
        """As ``Session.bind``, which goes before what the framework's login has bound."""
        if self._former:
            (self._state or self._touch()).principal = self._former[0]
            self._former = ()
        super().bind(principal, device=device)

    def __setitem__(self, key: str, value: Any) -> None:
        if key != self._login_key or self.get(key) == value:
            super().__setitem__(key, value)
            return
        user = self._user()
        self.renew(restart=True)
        super().__setitem__(key, value)
        state = self._state or self._touch()
        if state.principal in (None, user):
            self._former = (state.principal,)
            state.principal = self._user()

    def __delitem__(self, key: str) -> None:
        if key == self._login_key:
            self.bind(None)
        super().__delitem__(key)

    def _user(self) -> str | None:
        """Who has logged in, by the framework."""
        user = self.get(self._login_key)
        return None if user is None else str(user) or None
