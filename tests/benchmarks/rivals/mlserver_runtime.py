"""An MLServer runtime that answers with the `prob` of an ONNX graph; run by MLServer's interpreter.

It takes the shortest way from a request's lists to onnxruntime and back, without MLServer's codecs.
`parameters.extra.threads` sets the threads of one call.
"""

import numpy as np
import onnxruntime
from mlserver import MLModel
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput

_DTYPES = {"INT64": np.int64, "FP64": np.float64, "BYTES": object}


class OnnxModel(MLModel):
    async def load(self) -> bool:
        parameters = self.settings.parameters
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = parameters.extra["threads"]
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(
            parameters.uri, options, providers=["CPUExecutionProvider"]
        )
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        feeds = {
            tensor.name: np.array(tensor.data.root, _DTYPES[tensor.datatype]).reshape(tensor.shape)
            for tensor in payload.inputs
        }
        scores = self._session.run(["prob"], feeds)[0]
        output = ResponseOutput(
            name="prob", datatype="FP32", shape=list(scores.shape), data=scores.tolist()
        )
        return InferenceResponse(model_name=self.name, id=payload.id, outputs=[output])
