"""What a reader's first lesson does: connect, ask, stop. Says "right" at its end."""

from kernel import check_sums

from helpers import server

if __name__ == "__main__":
    with server.connect() as triton:
        check_sums(triton)
    print("right")
