"""curl in a notebook, on machines that have the command and on those that have not."""

import argparse
import shlex
from io import BytesIO

import pycurl

PARSER = argparse.ArgumentParser("curl", add_help=False)
PARSER.add_argument("url")
PARSER.add_argument("-v", "--verbose", action="store_true")
PARSER.add_argument("-X", "--request")
PARSER.add_argument("-H", "--header", action="append", default=[])
PARSER.add_argument("-d", "--data")
PARSER.add_argument("--data-binary")


def curl(command: str) -> str:
    """Print a curl command line, run it on libcurl, and return the body of the answer.

    Knows -v, which prints the lines sent (>) and received (<), -X, -H, -d and
    --data-binary. What curl would say of a failure is printed, as by the command.
    """
    options = PARSER.parse_args(shlex.split(command))
    print(f"$ curl {command}")
    body = BytesIO()
    handle = pycurl.Curl()
    handle.setopt(pycurl.URL, options.url)
    handle.setopt(pycurl.USERAGENT, f"curl/{pycurl.version_info()[1]}")
    handle.setopt(pycurl.HTTPHEADER, options.header)
    handle.setopt(pycurl.WRITEDATA, body)
    handle.setopt(pycurl.VERBOSE, options.verbose)
    handle.setopt(pycurl.DEBUGFUNCTION, show)
    data = options.data or options.data_binary
    if data is not None:
        handle.setopt(pycurl.POSTFIELDS, data)
    if options.request:
        handle.setopt(pycurl.CUSTOMREQUEST, options.request)
    try:
        handle.perform()
    except pycurl.error as error:
        print(f"curl: ({error.args[0]}) {error.args[1]}")
    handle.close()
    return body.getvalue().decode()


def show(kind: int, data: bytes) -> None:
    """Print the header lines of a request or of an answer, as `curl -v` does."""
    arrow = {pycurl.INFOTYPE_HEADER_OUT: ">", pycurl.INFOTYPE_HEADER_IN: "<"}.get(kind)
    if arrow:
        for line in data.decode().removesuffix("\r\n").split("\r\n"):
            print(arrow, line)
