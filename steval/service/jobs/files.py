"""What a job's directory holds. Imported before a scoring job's process is confined, so this module imports nothing.

JOBS/ID/job.json      status (schemas.ScoreJob or PredictionJob), replaced atomically
        owner         name of the key that submitted it; empty where the service has no keys
        request.json  schemas.ScoreBody and where its files are; schemas.PredictionsBody and with what it is done
        inputs/       uploaded files under names of ours
        tmp/          the one place that the job's process may write to: the result, `error.json`, `progress.json`, caches
        score/        the result, moved there once it is done: the score directory, or the predicted cells
        lock          held (flock) by the worker that runs the job; the system lets go of it when that process dies
        cancel        present where cancelling was asked for
        log.txt       what the process wrote
"""

OWNER = "owner"
INPUTS = "inputs"
SCORE = "score"
"""The result; of a prediction too."""
LOG = "log.txt"
TEMPORARY = "tmp"
ERROR = "error.json"
"""Below `TEMPORARY`: why the process ended with exit code 1."""
PROGRESS = "progress.json"
"""Below `TEMPORARY`: cells that are done."""
KERNELS = "kernels"
"""Below `TEMPORARY`: compiled kernels, copied there before the job starts."""
REQUEST = "request.json"
