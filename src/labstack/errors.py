"""The errors that people are meant to read, by subclass, each with the room that raises it.

LabError
    NotKeptError                        api.recording
    ControlError                        api.serving
    NoPredictionError                   api_client
    CommandError                        lab
    ArchiveError                        mlflow_server
    ModelFileError                      model
    NotEligibleError                    registry
    RegistryError                       registry
        NotThereError                   registry
        ProductionMovedError            registry
        RegistryFailedError             registry
            RegistryUnreachableError    registry
        RolesMovedError                 registry
        TooLargeError                   registry
    TrialError                          registry
        TrialTimeoutError               registry
    DatabaseError                       store
    DatasetError                        store
        RowsError                       store
        UnknownDatasetError             store
    FeedbackError                       store
    DataError                           training
    FilterError                         training
    PipelineError                       training
    SearchError                         training
    TrainingError                       training
"""


class LabError(Exception):
    """A person can repair what went wrong: the text, which is all they see, says what, where and what to do."""
