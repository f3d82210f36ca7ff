"""What every test may rely on."""

import signal

# Started in the background of a shell without job control, pytest would hand an ignored SIGINT
# down to the programs that the tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
