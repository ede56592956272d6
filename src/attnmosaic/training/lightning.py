"""Imports Lightning as a run does. The fork server of a sweep, which can only name modules, imports this one first."""

from attnmosaic.core.library_internals import import_lightning

import_lightning()
