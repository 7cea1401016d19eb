"""The part of an address that is a run's id: all that follows, since an id may hold slashes and line breaks."""

from starlette.convertors import Convertor, register_url_convertor

RUN_ID = "{run_id:run_id}"
"""Ends the path of a route."""


class _RunIdConvertor(Convertor[str]):
    regex = r"[\s\S]+"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("run_id", _RunIdConvertor())
